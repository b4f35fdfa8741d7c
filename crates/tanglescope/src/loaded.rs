//! A model that stays loaded from one call to the next.
use crate::crew::{Member, together};
use crate::device::{Device, names};
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::model::Model;
use crate::options::{DataOptions, Measured, ModelOptions, ReferenceModel};
use crate::token_rows::TokenRows;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tanglescope_gram::{Group, Request, grams};
use tanglescope_kernels::device::{Cuda, Vulkan};
use tanglescope_kernels::{Flex, Kernels};
use tanglescope_model::{AdapterSource, Decoder, HeldModel, Outline};

/// A loaded model, for several calls.
#[derive(Debug)]
pub struct LoadedModel {
    /// What it is, and what of it the next call measures.
    pub(crate) asked: Model,
    /// Folder of its saved adapter.
    adapter: Option<PathBuf>,
    measured: Measured,
    /// One a device.
    seats: Vec<Seat>,
}

/// A device with its copy of the model.
#[derive(Debug)]
struct Seat {
    device: Device,
    /// `None` after the device failed.
    decoder: Option<AnyDecoder>,
}

/// The model on the device that it was loaded onto.
#[derive(Debug)]
enum AnyDecoder {
    Cpu(Box<Decoder<Flex>>),
    Cuda(Box<Decoder<Cuda>>),
    Vulkan(Box<Decoder<Vulkan>>),
}

/// Work on a loaded model that is the same on every device.
pub(crate) trait OnModel {
    /// What the work returns.
    type Output;
    /// Does it.
    fn run<B: Kernels>(self, model: &mut Decoder<B>) -> Result<Self::Output>;
}

/// Work on a loaded model that devices of a kind share.
pub(crate) trait OnCrew: Sync {
    /// What the work returns.
    type Output: Send;
    /// Does a member's part, with the model as it was asked for on its device; the one that ends the work returns what came of it.
    fn run<B: Kernels>(
        &self,
        asked: &Model,
        member: &Member<'_>,
        model: &mut Decoder<B>,
    ) -> Result<Option<Self::Output>>;
}

/// A member's part of such work.
struct Part<'a, W> {
    work: &'a W,
    asked: &'a Model,
    member: &'a Member<'a>,
}

impl<W: OnCrew> OnModel for Part<'_, W> {
    type Output = Option<W::Output>;

    fn run<B: Kernels>(self, model: &mut Decoder<B>) -> Result<Self::Output> {
        self.work.run(self.asked, self.member, model)
    }
}

/// Inner products of the gradients of log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseGram {
    /// `[K, K]` of K responses, row by row: ⟨∇log π(a), ∇log π(b)⟩ over the parameters in scope.
    pub inner: Vec<f64>,
    /// log π of each response.
    pub logp: Vec<f64>,
}

impl LoadedModel {
    /// Loads a model, and says what runs where.
    ///
    /// # Errors
    /// Where an option, the model, its adapter or the device cannot be used.
    pub fn load(options: &ModelOptions, listener: &dyn Listener) -> Result<Self> {
        let asked = Model::new(options)?;
        Self::new(asked, options.adapter.clone(), options.measured.clone(), listener)
    }

    /// The same of a model whose weights another library holds in memory; on the CPU they are used where they lie, and must not change
    /// while a call is at work.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn held(
        held: Arc<HeldModel>,
        adapter: Option<PathBuf>,
        measured: Measured,
        listener: &dyn Listener,
    ) -> Result<Self> {
        let asked = Model::of_held(held, adapter.clone(), &measured)?;
        Self::new(asked, adapter, measured, listener)
    }

    fn new(asked: Model, adapter: Option<PathBuf>, measured: Measured, listener: &dyn Listener) -> Result<Self> {
        asked.announce(listener);
        let mut seats: Vec<Seat> =
            asked.devices.iter().map(|device| Seat { device: device.clone(), decoder: None }).collect();
        Seat::load_all(&mut seats, &asked, listener)?;
        Ok(Self { asked, adapter, measured, seats })
    }

    /// Puts another saved adapter on the base, or none; the base is not loaded again where neither adapter replaces tensors of it.
    ///
    /// # Errors
    /// Where the adapter cannot be used.
    pub fn load_adapter(&mut self, adapter: Option<&Path>, listener: &dyn Listener) -> Result<()> {
        let asked = self.asked_for(adapter, &self.measured)?;
        self.change(asked, listener)?;
        self.adapter = adapter.map(Path::to_owned);
        Ok(())
    }

    /// Chooses what of it the next calls measure: scope and fresh adapter; precision, device and memory stay as it was loaded.
    ///
    /// # Errors
    /// Where the scope selects nothing, or the fresh adapter does not fit.
    pub fn measure(&mut self, measured: &Measured, listener: &dyn Listener) -> Result<()> {
        let Measured { dtype, device, memory, padding_row, dora_norm, .. } = self.measured.clone();
        let measured = Measured { padding_row, dora_norm, dtype, device, memory, ..measured.clone() };
        let asked = self.asked_for(self.adapter.as_deref(), &measured)?;
        let tells = asked.adapter != self.asked.adapter;
        self.change(asked, listener)?;
        if tells {
            self.asked.announce(listener);
        }
        self.measured = measured;
        Ok(())
    }

    fn asked_for(&self, adapter: Option<&Path>, measured: &Measured) -> Result<Model> {
        let adapter = adapter.map(Path::to_owned);
        match &self.asked.held {
            Some(held) => Model::of_held(held.clone(), adapter, measured),
            None => Model::of(self.asked.folder.clone(), adapter, measured),
        }
    }

    /// Puts the adapter on the base that is asked for, where it is not there yet.
    fn change(&mut self, asked: Model, listener: &dyn Listener) -> Result<()> {
        // files of the same folder may be others by now
        let is_there = asked.adapter == self.asked.adapter && !matches!(asked.adapter, AdapterSource::Saved(_));
        if !is_there || self.seats.iter().any(|seat| seat.decoder.is_none()) {
            let under = |seat: &Seat| {
                seat.decoder.as_ref().map(|decoder| seat.device.guard(|| decoder.under(&asked))).transpose()
            };
            let under = self.seats.iter().map(under).collect::<Result<Vec<_>>>()?;
            // what is not there any more goes before the next one is loaded
            self.seats.iter_mut().zip(under).for_each(|(seat, under)| seat.decoder = under.flatten());
            if let Err(error) = Seat::load_all(&mut self.seats, &asked, listener) {
                self.seats.iter_mut().for_each(|seat| seat.decoder = None);
                return Err(error);
            }
        }
        self.asked = asked;
        Ok(())
    }

    /// Preference data for it, as its tokenizer reads it.
    ///
    /// # Errors
    /// Where a row or a file cannot be used.
    pub fn rows(&self, data: &DataOptions, listener: &dyn Listener) -> Result<TokenRows> {
        let folders: Vec<PathBuf> = self.asked.tokenizer_folders().into_iter().map(Path::to_owned).collect();
        TokenRows::of_model(data, &folders, &self.asked.outline()?.description, listener)
    }

    /// Its dimensions.
    ///
    /// # Errors
    /// Where its config cannot be read.
    pub fn outline(&self) -> Result<Outline> {
        self.asked.outline()
    }

    /// The model as the reference of another one.
    ///
    /// # Errors
    /// Where it has a saved adapter: the reference of a model is a whole one, or the folder of an adapter of its own base.
    pub fn as_reference(&self) -> Result<ReferenceModel> {
        match (&self.adapter, &self.asked.held) {
            (Some(adapter), _) => Err(Error::value(
                "reference",
                adapter.display(),
                "is the adapter of a model that is given as a reference; give the folder of the adapter itself",
            )),
            (None, Some(held)) => Ok(ReferenceModel::Held(held.clone())),
            (None, None) => Ok(ReferenceModel::Folder(self.asked.folder.clone())),
        }
    }

    /// The seed of what is drawn.
    pub(crate) fn measured_seed(&self) -> u64 {
        self.measured.seed
    }

    /// The device and number type that it runs in, in words.
    #[must_use]
    pub fn runs_on(&self) -> String {
        names(&self.asked.devices)
    }

    /// What stands for the base's weights, and for the adapter's.
    #[must_use]
    pub fn hashes(&self) -> [Option<String>; 2] {
        fn of<B: Kernels>(model: &Decoder<B>) -> [Option<String>; 2] {
            [Some(model.content_hash.clone()), model.adapter_hash.clone()]
        }
        match self.seats.iter().find_map(|seat| seat.decoder.as_ref()) {
            None => [None, None],
            Some(AnyDecoder::Cpu(model)) => of(model),
            Some(AnyDecoder::Cuda(model)) => of(model),
            Some(AnyDecoder::Vulkan(model)) => of(model),
        }
    }

    /// The Gram of the gradients of the log-probabilities of some responses to a prompt, by their ids.
    ///
    /// # Errors
    /// Where an id or a length is beyond the model's, or a number overflows.
    pub fn gram(&mut self, prompt: &[u32], responses: &[Vec<u32>], listener: &dyn Listener) -> Result<ResponseGram> {
        let of = self.asked.outline()?.description;
        let ids = || responses.iter().flatten().chain(prompt);
        if prompt.is_empty() || responses.is_empty() || responses.iter().any(Vec::is_empty) {
            return Err(Error::option(
                "responses",
                "prompt and responses have one token at least, and there is one response at least",
            ));
        }
        if let Some(id) = ids().find(|id| **id as usize >= of.vocabulary) {
            let problem = format!("has the id {id}, beyond the model's vocabulary (0 to {})", of.vocabulary - 1);
            return Err(Error::option("responses", problem));
        }
        let longest = prompt.len() + responses.iter().map(Vec::len).max().unwrap_or(0) - 1;
        if longest > of.max_positions {
            let problem = format!("need {longest} positions, and the model has {}", of.max_positions);
            return Err(Error::option("responses", problem));
        }
        let group = Group::of(&of, prompt.to_vec(), responses.to_vec());
        self.run(GramOnModel { scope: &self.asked.scope.clone(), group: &group }, listener)
    }

    /// The seats whose devices have not failed, one at least.
    fn seats(&mut self) -> Result<Vec<&mut Seat>> {
        let seats: Vec<&mut Seat> = self.seats.iter_mut().filter(|seat| seat.decoder.is_some()).collect();
        if seats.is_empty() {
            let problem = "it failed under this model, which has to be loaded again".to_owned();
            return Err(Error::Device { device: names(&self.asked.devices), problem });
        }
        Ok(seats)
    }

    /// Does work on a device that the model is on.
    pub(crate) fn run<W: OnModel>(&mut self, work: W, listener: &dyn Listener) -> Result<W::Output> {
        self.seats()?.remove(0).run(work, listener)
    }

    /// Does work on all devices that the model is on.
    pub(crate) fn share<W: OnCrew>(&mut self, work: &W, listener: &dyn Listener) -> Result<W::Output> {
        let asked = self.asked.clone();
        together(self.seats()?, listener, |seat, member| {
            let asked = &asked.on(&seat.device);
            seat.run(Part { work, asked, member }, member.listener)
        })
    }
}

impl Seat {
    /// Loads the model where it is not; without the devices that fail, unless all do.
    fn load_all(seats: &mut [Self], asked: &Model, listener: &dyn Listener) -> Result<()> {
        let missing: Vec<&mut Self> = seats.iter_mut().filter(|seat| seat.decoder.is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        together(missing, listener, |seat, member| {
            seat.decoder = Some(loaded(&asked.on(&seat.device), member.listener)?);
            Ok(Some(()))
        })
    }

    fn run<W: OnModel>(&mut self, work: W, listener: &dyn Listener) -> Result<W::Output> {
        let device = self.device.clone();
        let stop = listener.stop().cloned().unwrap_or_default();
        let Some(decoder) = &mut self.decoder else { unreachable!("seats whose devices failed are left out") };
        let done = match decoder {
            AnyDecoder::Cpu(model) => {
                model.stop = stop;
                device.guard(|| work.run(model))
            }
            AnyDecoder::Cuda(model) => {
                model.stop = stop;
                device.guard(|| work.run(model))
            }
            AnyDecoder::Vulkan(model) => {
                model.stop = stop;
                device.guard(|| work.run(model))
            }
        };
        if matches!(done, Err(Error::Device { .. })) {
            self.decoder = None;
        }
        done
    }
}

struct GramOnModel<'a> {
    scope: &'a tanglescope_model::Scope,
    group: &'a Group,
}

impl OnModel for GramOnModel<'_> {
    type Output = ResponseGram;

    fn run<B: Kernels>(self, model: &mut Decoder<B>) -> Result<ResponseGram> {
        let scope = model.in_scope(self.scope)?;
        let Some(found) = grams(model, &scope, &Request::all([self.group])).into_iter().next() else {
            unreachable!("one result a group")
        };
        let responses = self.group.responses.len();
        let found = ResponseGram { inner: found.total(), logp: (0..responses).map(|k| found.logp(k)).collect() };
        match found.inner.iter().chain(&found.logp).all(|x| x.is_finite()) {
            true => Ok(found),
            false => Err(Error::overflow(0, "a log-probability or inner product")),
        }
    }
}

impl AnyDecoder {
    /// The same base under the adapter of another model of it.
    fn under(&self, asked: &Model) -> Result<Option<Self>> {
        fn of<B: Kernels>(model: &Decoder<B>, asked: &Model) -> Result<Option<Box<Decoder<B>>>> {
            let Some(mut changed) = model.under(&asked.adapter)? else { return Ok(None) };
            asked.settle(&mut changed);
            Ok(Some(Box::new(changed)))
        }
        Ok(match self {
            Self::Cpu(model) => of(model, asked)?.map(Self::Cpu),
            Self::Cuda(model) => of(model, asked)?.map(Self::Cuda),
            Self::Vulkan(model) => of(model, asked)?.map(Self::Vulkan),
        })
    }
}

fn loaded(asked: &Model, listener: &dyn Listener) -> Result<AnyDecoder> {
    let device = &asked.device;
    let dtype = asked.dtype;
    device.guard(|| {
        Ok(match device {
            Device::Cpu => AnyDecoder::Cpu(Box::new(asked.load(dtype, &tanglescope_kernels::FlexDevice, listener)?)),
            Device::Cuda(on, ..) => AnyDecoder::Cuda(Box::new(asked.load(dtype, on, listener)?)),
            Device::Vulkan(on, _) => AnyDecoder::Vulkan(Box::new(asked.load(dtype, on, listener)?)),
        })
    })
}
