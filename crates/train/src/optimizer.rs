//! AdamW over named tensors.
use burn_tensor::{Tensor, TensorPrimitive};
use rayon::prelude::*;
use std::collections::HashMap;
use tanglescope_kernels::{AdamStep, DType, FloatTensor, Kernels, TensorMetadata};
use tanglescope_records::Settings;

/// AdamW, and the moments of every parameter that it has moved.
pub struct Optimizer<B: Kernels> {
    settings: Settings,
    moments: HashMap<String, Moments<B>>,
}

/// m and v of a parameter, as matrices, after some steps.
struct Moments<B: Kernels> {
    tensors: [FloatTensor<B>; 2],
    steps: usize,
}

/// A parameter that is to move.
pub struct Moving<B: Kernels> {
    pub name: String,
    pub x: FloatTensor<B>,
    /// None where all coefficients of a step were zero.
    pub gradient: Option<FloatTensor<B>>,
}

/// A step that was taken, and what it was taken from.
pub struct Taken<'a, B: Kernels> {
    pub settings: &'a Settings,
    pub rate: f64,
    /// θ before the step.
    pub parameters: &'a HashMap<String, FloatTensor<B>>,
    /// g: the gradient of the loss, as the optimizer was given it.
    pub gradient: &'a HashMap<String, FloatTensor<B>>,
    /// m of the step before.
    pub first_moments: &'a HashMap<String, FloatTensor<B>>,
}

/// The parts of a step, by parameter; one that a part leaves alone is not in it.
pub struct StepParts<B: Kernels> {
    /// By the gradient of this step's batch.
    pub gradient: HashMap<String, FloatTensor<B>>,
    /// By the batches before.
    pub momentum: HashMap<String, FloatTensor<B>>,
    /// By weight decay.
    pub decay: HashMap<String, FloatTensor<B>>,
    /// √P_t.
    pub roots: HashMap<String, FloatTensor<B>>,
    /// η(1 − β₁)/(1 − β₁ᵗ): what P_t g is multiplied with.
    pub of_gradient: f64,
}

/// A matrix as it is, a vector as one row.
pub fn matrix<B: Kernels>(x: &FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let (rows, columns) = if shape.num_dims() == 1 { (1, shape[0]) } else { (shape[0], shape[1]) };
    B::reshape(x.clone(), [rows, columns])
}

/// The matrix as a burn tensor.
fn tensor<B: Kernels>(x: &FloatTensor<B>) -> Tensor<B, 2> {
    Tensor::from_primitive(TensorPrimitive::Float(matrix::<B>(x)))
}

fn primitive<B: Kernels>(x: Tensor<B, 2>, like: &FloatTensor<B>) -> FloatTensor<B> {
    B::reshape(x.into_primitive().tensor(), like.shape())
}

impl<B: Kernels> Optimizer<B> {
    /// Before the first step.
    pub fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone(), moments: HashMap::new() }
    }

    /// What a step of a parameter goes by, which has some dimensions.
    fn of_step(settings: &Settings, rate: f64, dims: usize, steps: usize) -> AdamStep {
        let Settings { beta1, beta2, epsilon, weight_decay, .. } = *settings;
        // gains and biases do not decay, as in transformers' trainer
        let weight_decay = if dims == 1 { 0.0 } else { weight_decay };
        AdamStep { rate, beta1, beta2, epsilon, weight_decay, steps }
    }

    /// Parameters after a step against a gradient of the loss; of one without a gradient only the moments decay.
    ///
    /// `side_by_side` runs several at once: a processor's cores do not wait for the end of each.
    pub fn step(&mut self, parameters: Vec<Moving<B>>, rate: f64, side_by_side: bool) -> Vec<(String, FloatTensor<B>)> {
        let with_moments: Vec<(Moving<B>, Option<Moments<B>>)> =
            parameters.into_iter().map(|p| (self.moments.remove(&p.name), p)).map(|(m, p)| (p, m)).collect();
        let settings = &self.settings;
        let step = |(Moving { name, x, gradient }, moments): (Moving<B>, Option<Moments<B>>)| {
            let shape = x.shape();
            let nothing = || B::times_number(x.clone(), 0.0);
            let gradient = matrix::<B>(&gradient.unwrap_or_else(nothing));
            let before = || Moments { tensors: [(); 2].map(|()| matrix::<B>(&nothing())), steps: 0 };
            let Moments { tensors, steps } = moments.unwrap_or_else(before);
            let of = Self::of_step(settings, rate, shape.num_dims(), steps + 1);
            let (moved, tensors) = B::adam_step(matrix::<B>(&x), tensors, &gradient, &of);
            (name, B::reshape(moved, shape), Moments { tensors, steps: steps + 1 })
        };
        let moved: Vec<_> = match side_by_side {
            true => with_moments.into_par_iter().map(step).collect(),
            false => with_moments.into_iter().map(step).collect(),
        };
        let mut out = Vec::with_capacity(moved.len());
        for (name, x, state) in moved {
            self.moments.insert(name.clone(), state);
            out.push((name, x));
        }
        out
    }

    /// The first moment of every parameter that it has moved.
    pub fn first_moments(&self) -> HashMap<String, FloatTensor<B>> {
        self.moments.iter().map(|(name, moments)| (name.clone(), moments.tensors[0].clone())).collect()
    }

    /// What the step that was just taken is made of: given v_t, Adam's step is linear,
    /// `Δθ = −η P_t (β₁ m_{t−1} + (1 − β₁) g_t)/(1 − β₁ᵗ) − ηλθ` with `P_t = 1/(√(v_t/(1 − β₂ᵗ)) + ε)`.
    pub fn take_apart(&self, taken: &Taken<'_, B>) -> StepParts<B> {
        let Taken { settings, rate, parameters, gradient, first_moments } = taken;
        let mut parts = StepParts {
            gradient: HashMap::new(),
            momentum: HashMap::new(),
            decay: HashMap::new(),
            roots: HashMap::new(),
            of_gradient: 0.0,
        };
        for (name, x) in *parameters {
            let Some(Moments { tensors: [_, v], steps }) = self.moments.get(name) else { continue };
            let of = Self::of_step(settings, *rate, x.shape().num_dims(), *steps);
            let AdamStep { beta1, epsilon, weight_decay, .. } = of;
            let ([first, second], [share, _]) = (of.weights(), of.shares());
            let p = tensor::<B>(v).div_scalar(second).sqrt().add_scalar(epsilon).recip();
            let along = |of: &FloatTensor<B>, factor: f64| {
                primitive((p.clone() * tensor::<B>(of)).mul_scalar(-rate * factor), x)
            };
            parts.of_gradient = rate * share / first;
            if let Some(gradient) = gradient.get(name) {
                parts.gradient.insert(name.clone(), along(gradient, share / first));
            }
            if let Some(moment) = first_moments.get(name) {
                parts.momentum.insert(name.clone(), along(moment, f64::from(beta1) / first));
            }
            if weight_decay != 0.0 {
                parts.decay.insert(name.clone(), B::times_number(x.clone(), -rate * f64::from(weight_decay)));
            }
            let dtype = if B::is_host() { x.dtype() } else { DType::F32 };
            parts.roots.insert(name.clone(), B::cast(primitive(p.sqrt(), x), dtype));
        }
        parts
    }

    /// Both moments of every parameter, each under `moment_1.` or `moment_2.` and its name, as matrices.
    pub fn tensors(&self) -> Vec<(String, FloatTensor<B>)> {
        let of = |(name, Moments { tensors: [m, v], .. }): (&String, &Moments<B>)| {
            [("moment_1", m), ("moment_2", v)].map(|(moment, x)| (format!("{moment}.{name}"), x.clone()))
        };
        self.moments.iter().flat_map(of).collect()
    }

    /// Takes moments back, after some steps.
    pub fn restore(&mut self, steps: usize, mut tensors: HashMap<String, FloatTensor<B>>) {
        let names: Vec<String> =
            tensors.keys().filter_map(|name| name.strip_prefix("moment_1.")).map(str::to_owned).collect();
        for name in names {
            let mut take = |moment: &str| tensors.remove(&format!("{moment}.{name}")).map(|x| matrix::<B>(&x));
            if let (Some(m), Some(v)) = (take("moment_1"), take("moment_2")) {
                self.moments.insert(name, Moments { tensors: [m, v], steps });
            }
        }
    }
}

/// Σ x² over all tensors, summed in f64 across tensors.
pub fn squared_norm<B: Kernels>(tensors: &HashMap<String, FloatTensor<B>>) -> f64 {
    let mut names: Vec<&String> = tensors.keys().collect();
    // the order of a map is random, and sums depend on theirs
    names.sort();
    let pending = names.into_iter().map(|name| {
        let x = matrix::<B>(&tensors[name]);
        let rows = x.shape()[0];
        B::dots(&x, &[0..rows], &[0..1])
    });
    B::collect(pending.collect()).iter().map(|grams| grams[0][0]).sum()
}
