//! Where the weights of blocks are: on the device, in the host's memory, or in the checkpoint's files until they are used.
use crate::adapter::Adapter;
use crate::architectures::Description;
use crate::assemble;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::layers::{Block, FusedLora, Lora, Part, whole};
use crate::load::Loader;
use crate::parameters::{NamedVisitor, visit_block, visit_fused, visit_lora};
use crate::weights::Weights;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use tanglescope_kernels::{DType, Done, Flex, FlexDevice, FloatTensor, Kernels};

/// How many blocks are where: the first ones on the device, the next in the host's memory, and the others in the checkpoint's
/// files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// On the device.
    pub device: usize,
    /// In the host's memory.
    pub host: usize,
}

impl Places {
    /// All on the device.
    pub const DEVICE: Self = Self { device: usize::MAX, host: 0 };
}

/// A block, wherever its weights are.
#[derive(Clone, Debug)]
pub(crate) enum Residence<B: Kernels> {
    /// On the device.
    Device(Box<Block<B>>),
    /// In the host's memory; copied to the device for each use.
    Host(Box<Block<Flex>>),
    /// In the checkpoint's files; read for each use.
    Files(Box<InFiles<B>>),
}

/// A block that is on the device for now.
pub(crate) enum OnDevice<'a, B: Kernels> {
    /// As it stays there.
    Resident(&'a Block<B>),
    /// A copy of what the host or the files have.
    Copied(Box<Block<B>>),
}

impl<B: Kernels> std::ops::Deref for OnDevice<'_, B> {
    type Target = Block<B>;

    fn deref(&self) -> &Block<B> {
        match self {
            Self::Resident(block) => block,
            Self::Copied(block) => block,
        }
    }
}

/// Where blocks are read from.
#[derive(Debug)]
pub(crate) struct Store {
    pub weights: Weights,
    pub description: Description,
    pub names_prefix: String,
    pub bare: bool,
    pub dtype: DType,
}

impl Store {
    /// The weights of a block, without an adapter.
    fn read(&self, layer: usize) -> Result<Block<Flex>> {
        let Self { weights, description, names_prefix, bare, dtype } = self;
        let mut plain = Adapter::None;
        let mut loader = Loader::new(weights.again(), &mut plain, names_prefix.clone(), *bare, *dtype);
        assemble::block::<Flex>(&mut loader, description, layer, &FlexDevice)
    }
}

/// A block whose weights are read for each use; what an adapter changes of it stays on the device.
#[derive(Clone, Debug)]
pub(crate) struct InFiles<B: Kernels> {
    layer: usize,
    store: Arc<Store>,
    /// Changes of its linear maps, in their order.
    loras: Vec<Option<Lora<B>>>,
    /// Changes of all experts.
    fused: Vec<[Option<FusedLora<B>>; 2]>,
    /// Tensors that are not as the files have them.
    own: BTreeMap<String, FloatTensor<B>>,
    /// Names of all tensors of the base.
    names: Vec<String>,
}

impl<B: Kernels> InFiles<B> {
    /// What stays of a block: changes of its maps, and the tensors of the base that are its `own`, by the names of whole tensors.
    pub fn of(mut block: Block<B>, layer: usize, store: &Arc<Store>, is_own: &dyn Fn(&str) -> bool) -> Self {
        let (mut loras, mut fused, mut names) = (Vec::new(), Vec::new(), Vec::new());
        block.visit(&mut |part| match part {
            Part::Linear(map) | Part::Expert(map) => {
                loras.push(map.lora.take());
                names.push(map.weight_name());
            }
            Part::Fused(of) => fused.push(std::mem::take(of)),
            Part::Norm(_) | Part::Vector(_) => {}
        });
        // what is left is the base's
        let mut own = BTreeMap::new();
        visit_block(&mut block, (store.dtype, is_own), &mut |name, _, tensor| {
            if is_own(whole(name)) {
                own.insert(name.to_owned(), tensor.clone());
            }
            names.push(name.to_owned());
        });
        Self { layer, store: store.clone(), loras, fused, own, names }
    }

    /// The block with what was read.
    fn with(&self, mut block: Block<B>, dtype: DType) -> Block<B> {
        if !self.own.is_empty() {
            let is_own = |name: &str| self.own.keys().any(|own| whole(own) == name);
            visit_block(&mut block, (dtype, &is_own), &mut |name, _, tensor| {
                if let Some(own) = self.own.get(name) {
                    *tensor = own.clone();
                }
            });
        }
        let (mut loras, mut fused) = (self.loras.iter(), self.fused.iter());
        block.visit(&mut |part| match part {
            Part::Linear(map) | Part::Expert(map) => map.lora = loras.next().cloned().flatten(),
            Part::Fused(of) => *of = fused.next().cloned().unwrap_or([None, None]),
            Part::Norm(_) | Part::Vector(_) => {}
        });
        block
    }

    /// The block as it is.
    fn read(&self, dtype: DType, device: &B::Device) -> Result<Block<B>> {
        let read = self.store.read(self.layer)?;
        Ok(self.with(read.convert(&|x| B::from_host(x, dtype, device)), dtype))
    }

    /// What stays of it as it is now, with more of the base's tensors its own.
    fn replace(&mut self, block: Block<B>, more: &dyn Fn(&str) -> bool) {
        let before: BTreeSet<&str> = self.own.keys().map(|name| whole(name)).collect();
        *self = Self::of(block, self.layer, &self.store, &|name| before.contains(name) || more(name));
    }

    /// Whether its tensors have to be read so that all that are wanted are seen as they are.
    fn wants_files(&self, wanted: &dyn Fn(&str) -> bool) -> bool {
        // norms of columns are of the weights too
        let factors = |lora: &Lora<B>| [lora.a_name(), lora.b_name()];
        let with_lengths = self.loras.iter().flatten().filter(|lora| lora.magnitude.is_some());
        let lengths = with_lengths.flat_map(factors).any(|name| wanted(&name));
        lengths || self.names.iter().any(|name| wanted(whole(name)))
    }

    /// Calls a function with every tensor that stays on the device.
    fn visit_changes(&mut self, f: &mut NamedVisitor<'_, B>) {
        self.loras.iter_mut().flatten().for_each(|lora| visit_lora(lora, f));
        self.fused.iter_mut().flatten().flatten().for_each(|fused| visit_fused(fused, f));
    }

    /// Calls a function with every tensor, and keeps those that are wanted, which may have been changed.
    fn visit_all(
        &mut self,
        (dtype, device): (DType, &B::Device),
        wanted: &dyn Fn(&str) -> bool,
        f: &mut NamedVisitor<'_, B>,
    ) {
        let mut block = self.read(dtype, device).unwrap_or_else(|error| resume_unwind(Box::new(error)));
        visit_block(&mut block, (dtype, wanted), f);
        self.replace(block, wanted);
    }

    /// Changes it as a whole, and keeps what is not as the files have it.
    pub fn change(
        &mut self,
        dtype: DType,
        device: &B::Device,
        f: impl FnOnce(&mut Block<B>) -> Result<()>,
    ) -> Result<()> {
        let mut block = self.read(dtype, device)?;
        f(&mut block)?;
        self.replace(block, &|_| false);
        Ok(())
    }

    /// The same without an adapter.
    pub fn without_adapter(&mut self) {
        self.loras.iter_mut().for_each(|lora| *lora = None);
        self.fused.iter_mut().for_each(|fused| *fused = [None, None]);
    }
}

/// Works on what else there is to do for a thread of the pool, so that loops of other threads find one; waits where there is nothing.
fn work_or_wait() {
    if rayon::yield_now() != Some(rayon::Yield::Executed) {
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
}

/// What comes next of a channel.
fn awaited<T>(channel: &Receiver<T>) -> Option<T> {
    loop {
        match channel.try_recv() {
            Ok(next) => return Some(next),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => work_or_wait(),
        }
    }
}

impl<B: Kernels> Residence<B> {
    /// What files have of it; `None` where it is not in files.
    fn read(&self) -> Option<Result<Block<Flex>>> {
        match self {
            Self::Files(of) => Some(of.store.read(of.layer)),
            Self::Device(_) | Self::Host(_) => None,
        }
    }

    /// Calls a function with every tensor that stays in memory, and with those of files where one is wanted; keeps what was changed.
    pub fn visit(&mut self, on: (DType, &B::Device), wanted: &dyn Fn(&str) -> bool, f: &mut NamedVisitor<'_, B>) {
        let (dtype, device) = on;
        match self {
            Self::Device(block) => visit_block(block, (dtype, wanted), f),
            Self::Host(block) => {
                let mut copy: Block<B> = block.convert(&|x| B::from_host(x, dtype, device));
                visit_block(&mut copy, (dtype, wanted), f);
                **block = copy.convert(&|x| B::to_host(x, dtype));
            }
            Self::Files(of) if of.wants_files(wanted) => of.visit_all(on, wanted, f),
            Self::Files(of) => of.visit_changes(f),
        }
    }
}

impl<B: Kernels> Decoder<B> {
    /// Where its blocks are.
    #[must_use]
    pub fn places(&self) -> Places {
        let number = |of: fn(&Residence<B>) -> bool| self.blocks.iter().filter(|block| of(block)).count();
        Places {
            device: number(|block| matches!(block, Residence::Device(_))),
            host: number(|block| matches!(block, Residence::Host(_))),
        }
    }

    /// Calls a function with blocks in an order, until it says that it has enough. Those in files are read one ahead, and what is not on the device
    /// is copied there one ahead: the next while the function, and then the device, is at work on one.
    pub(crate) fn each_block(&self, order: &[usize], f: &mut dyn FnMut(usize, &Block<B>) -> bool) {
        let elsewhere: Vec<usize> =
            order.iter().copied().filter(|layer| !matches!(self.blocks[*layer], Residence::Device(_))).collect();
        let mut run = |copies: Option<&Copies<B>>| {
            for layer in order {
                self.stop.end_if_asked();
                let block = match (&self.blocks[*layer], copies) {
                    (Residence::Device(block), _) => OnDevice::Resident(block),
                    (_, Some(copies)) => match copies.next() {
                        Some(block) => OnDevice::Copied(block),
                        None => return,
                    },
                    (_, None) => unreachable!("blocks elsewhere are copied"),
                };
                let more = f(*layer, &block);
                if let (OnDevice::Copied(block), Some(copies)) = (block, copies) {
                    copies.take_back(block, B::done(&self.device));
                }
                if !more {
                    return;
                }
            }
        };
        if elsewhere.is_empty() {
            return run(None);
        }
        std::thread::scope(|scope| {
            let layers = &*elsewhere;
            // where a copy takes time, the block after it is read meanwhile; what was read waits at the channel
            let (read, reader) = (!B::is_host())
                .then(|| {
                    let (send, read) = sync_channel(0);
                    let reader = scope.spawn(move || {
                        for read in layers.iter().filter_map(|layer| self.blocks[*layer].read()) {
                            if send.send(read).is_err() {
                                return;
                            }
                        }
                    });
                    (read, reader)
                })
                .unzip();
            let (send, ready) = sync_channel(0);
            let (back, used) = channel();
            let copier = scope.spawn(move || {
                self.copy_ahead(layers, read.as_ref(), &send, &used);
                drop((read, send));
                // until nobody uses the last ones
                used.iter().for_each(free);
            });
            let copies = Copies { ready, back };
            let ran = catch_unwind(AssertUnwindSafe(|| run(Some(&copies))));
            drop(copies);
            while !copier.is_finished() || reader.as_ref().is_some_and(|reader| !reader.is_finished()) {
                work_or_wait();
            }
            for end in [ran, copier.join()] {
                end.unwrap_or_else(|payload| resume_unwind(payload));
            }
        });
    }

    /// Copies blocks to the device, each once the one before the last is done with: two are there at a time.
    fn copy_ahead(
        &self,
        layers: &[usize],
        read: Option<&Receiver<Result<Block<Flex>>>>,
        ready: &SyncSender<Result<Box<Block<B>>>>,
        used: &Receiver<Used<B>>,
    ) {
        for (number, layer) in layers.iter().enumerate() {
            if number >= 2 {
                let Ok(last) = used.recv() else { return };
                free(last);
            }
            let block = match &self.blocks[*layer] {
                Residence::Host(block) => Ok(self.copy(block)),
                Residence::Files(of) => {
                    let read = match read {
                        Some(read) => read.recv().ok(),
                        None => self.blocks[*layer].read(),
                    };
                    let Some(read) = read else { return };
                    read.map(|read| of.with(self.copy(&read), self.dtype))
                }
                Residence::Device(_) => continue,
            };
            if ready.send(block.map(Box::new)).is_err() {
                return;
            }
        }
    }

    /// A block of the host's on the device.
    fn copy(&self, block: &Block<Flex>) -> Block<B> {
        let of_host = RefCell::new(Vec::new());
        let _: Block<Flex> = block.convert(&|x| {
            of_host.borrow_mut().push(x.clone());
            x.clone()
        });
        let copied = B::copied(&of_host.into_inner(), self.dtype, &self.device);
        let copied = RefCell::new(copied.unwrap_or_else(|problem| panic!("{problem}")).into_iter());
        block.convert(&|_| {
            copied.borrow_mut().next().unwrap_or_else(|| unreachable!("a block has as many tensors each time"))
        })
    }
}

/// A copy of a block that was used, and what waits until the device has done that.
type Used<B> = (Box<Block<B>>, Done);

/// Gives a block's memory back when the device no longer uses it.
fn free<B: Kernels>((block, done): Used<B>) {
    // what failed on the device ends the work, as it does where results are read
    done().unwrap_or_else(|problem| panic!("{problem}"));
    drop(block);
}

/// Blocks that come to the device one after the other, and go.
struct Copies<B: Kernels> {
    ready: Receiver<Result<Box<Block<B>>>>,
    back: Sender<Used<B>>,
}

impl<B: Kernels> Copies<B> {
    /// The next one; none where copying ended. What cannot be read any more ends the work, with the error as the payload of its panic.
    fn next(&self) -> Option<Box<Block<B>>> {
        let next = awaited(&self.ready)?;
        Some(next.unwrap_or_else(|error| resume_unwind(Box::new(error))))
    }

    /// Gives one back whose memory is free when the device has done what it was used for.
    fn take_back(&self, block: Box<Block<B>>, done: Done) {
        // where there is nobody to take it, copying has failed, which ends the work
        drop(self.back.send((block, done)));
    }
}

/// What a panic says that a file could not be read, where that is why.
///
/// # Errors
/// The payload, where it is of something else.
pub fn stopped_by(payload: Box<dyn std::any::Any + Send>) -> std::result::Result<Error, Box<dyn std::any::Any + Send>> {
    payload.downcast::<Error>().map(|error| *error)
}
