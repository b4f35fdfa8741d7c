//! The same layers written as tensor operations over one whole sequence, for burn's autodiff.
use crate::random::{Qkv, Shape};
use crate::{Auto, leaf};
use burn_tensor::{Tensor, activation};
use std::collections::HashMap;

/// The layers over one whole sequence `x[n, hidden]`.
pub struct Written<'a> {
    pub shape: &'a Shape,
    pub leaves: HashMap<String, Tensor<Auto, 2>>,
}

impl Written<'_> {
    fn norm(&self, name: &str, x: &Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        let x = if self.shape.centred { x.clone() - x.clone().mean_dim(1) } else { x.clone() };
        let size = (x.clone() * x.clone()).mean_dim(1).add_scalar(1e-5).sqrt();
        let gain = self.leaves[&format!("{name}.weight")].clone();
        let y = x / size * if self.shape.plus_one { gain.add_scalar(1.0) } else { gain };
        self.leaves.get(&format!("{name}.bias")).map_or(y.clone(), |bias| y + bias.clone())
    }

    fn linear(&self, name: &str, x: &Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        let of = |part: &str| self.leaves.get(&format!("{name}.{part}")).cloned();
        let mut weight = of("weight").unwrap();
        if let (Some(a), Some(b)) = (of("lora_A.weight"), of("lora_B.weight")) {
            weight = weight + a.matmul(b) * 0.7;
        }
        if let Some(magnitude) = of("lora_magnitude_vector") {
            let lengths = (weight.clone() * weight.clone()).sum_dim(0).sqrt();
            weight = weight * (magnitude / lengths);
        }
        let y = x.clone().matmul(weight);
        of("bias").map_or(y.clone(), |bias| y + bias)
    }

    fn softmax_attention(
        &self,
        q: &Tensor<Auto, 2>,
        k: &Tensor<Auto, 2>,
        v: &Tensor<Auto, 2>,
        angles: &[f64],
    ) -> Tensor<Auto, 2> {
        let (n, h, half) = (q.dims()[0], self.shape.head_dim(), self.shape.half);
        let head = |x: &Tensor<Auto, 2>, i: usize| x.clone().slice([0..n, i * h..(i + 1) * h]);
        let rotate = |x: Tensor<Auto, 2>| {
            if !self.shape.rotary {
                return x;
            }
            let of = |f: fn(f64) -> f64| leaf(&angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), [n, half]);
            let (cos, sin) = (of(f64::cos), of(f64::sin));
            let (a, b) = (x.clone().slice([0..n, 0..half]), x.clone().slice([0..n, half..2 * half]));
            let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
            if 2 * half < h {
                parts.push(x.slice([0..n, 2 * half..h]));
            }
            Tensor::cat(parts, 1)
        };
        let mask: Vec<f64> = (0..n * n).map(|at| if at % n > at / n { -1e9 } else { 0.0 }).collect();
        let heads = (0..self.shape.kv_heads * self.shape.repeat).map(|i| {
            let shared = i / self.shape.repeat;
            let scores = rotate(head(q, i)).matmul(rotate(head(k, shared)).transpose()) * 0.3 + leaf(&mask, [n, n]);
            activation::softmax(scores, 1).matmul(head(v, shared))
        });
        Tensor::cat(heads.collect(), 1)
    }

    /// A norm of each stretch of a row as long as its gain.
    fn query_key_norm(&self, name: &str, x: Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        let [n, width] = x.dims();
        let part = match self.shape.query_key {
            0 => return x,
            1 => self.shape.head_dim(),
            _ => width,
        };
        let parts = (0..width).step_by(part).map(|at| self.norm(name, &x.clone().slice([0..n, at..at + part])));
        Tensor::cat(parts.collect(), 1)
    }

    fn before(&self, name: &str, x: &Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        if self.shape.before { self.norm(name, x) } else { x.clone() }
    }

    fn after(&self, name: &str, x: Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        if self.shape.after { self.norm(name, &x) } else { x }
    }

    pub fn attention(&self, x: &Tensor<Auto, 2>, angles: &[f64]) -> Tensor<Auto, 2> {
        let h = self.shape.head_dim();
        let (qw, kw) = (self.shape.kv_heads * self.shape.repeat * h, self.shape.kv_heads * h);
        let n = x.dims()[0];
        let columns = |x: &Tensor<Auto, 2>, columns| x.clone().slice([0..n, columns]);
        let [q, k, v] = match self.shape.qkv {
            Qkv::Separate => ["q", "k", "v"].map(|name| self.linear(name, x)),
            Qkv::Joined => {
                let all = self.linear("qkv", x);
                [0..qw, qw..qw + kw, qw + kw..qw + 2 * kw].map(|range| columns(&all, range))
            }
            Qkv::ByHead => {
                let all = self.linear("qkv", x);
                let of_head =
                    |head: usize, piece: usize| columns(&all, (3 * head + piece) * h..(3 * head + piece + 1) * h);
                [0, 1, 2].map(|piece| Tensor::cat((0..self.shape.kv_heads).map(|i| of_head(i, piece)).collect(), 1))
            }
        };
        let (q, k) = (self.query_key_norm("qn", q), self.query_key_norm("kn", k));
        self.linear("o", &self.softmax_attention(&q, &k, &v, angles))
    }

    pub fn mlp(&self, x: &Tensor<Auto, 2>) -> Tensor<Auto, 2> {
        let columns = |x: &Tensor<Auto, 2>, columns| x.clone().slice([0..x.dims()[0], columns]);
        let inner = match (self.shape.gated, self.shape.joined) {
            (false, _) => activation::silu(self.linear("up", x)),
            (true, false) => activation::silu(self.linear("gate", x)) * self.linear("up", x),
            (true, true) => {
                let (both, width) = (self.linear("up", x), self.shape.mlp_width);
                activation::silu(columns(&both, 0..width)) * columns(&both, width..2 * width)
            }
        };
        self.linear("down", &inner)
    }

    pub fn block(&self, x: &Tensor<Auto, 2>, angles: &[f64]) -> Tensor<Auto, 2> {
        let scale = self.shape.scale;
        let middle = x.clone() + self.after("ln3", self.attention(&self.before("ln1", x), angles)) * scale;
        let normal = self.before("ln2", if self.shape.parallel { x } else { &middle });
        middle + self.after("ln4", self.mlp(&normal)) * scale
    }
}
