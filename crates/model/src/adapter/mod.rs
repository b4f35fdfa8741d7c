//! LoRA adapters: a PEFT folder, or a fresh one as PEFT would start it.
mod fresh;
mod saved;
mod tables;
mod taken_apart;
mod targets;

use fresh::Fresh;
pub use fresh::FreshLora;
pub(crate) use saved::SavedAdapter;
pub use saved::{adapter_hash, adapter_kinds, base_name, base_named_by};
pub use tables::{LowRank, OwnTokens, TablesOutline};
use taken_apart::TakenApart;

use crate::architectures::{Description, ExpertsKind};
use crate::error::Result;
use crate::layers::{Block, FusedLora, Linear, Lora, Matrix, Part};
use crate::tables::TableChanges;
use std::path::PathBuf;
use tanglescope_kernels::{DType, FloatTensor, Kernels};

/// Where the low-rank factors come from.
#[derive(Clone, Debug, PartialEq)]
pub enum AdapterSource {
    /// The plain base model.
    None,
    /// A PEFT LoRA folder.
    Saved(PathBuf),
    /// New factors: A uniform in ±1/√in, B zero, as PEFT initialises them.
    Fresh(FreshLora),
}

/// Where a linear map is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Its block, where it is of one.
    pub layer: Option<usize>,
    /// Whether it is a projection of attention.
    pub attention: bool,
    /// Whether it is one of many experts'.
    pub routed: bool,
}

/// Gives each linear map of the blocks its adapter factors.
pub(crate) enum Adapter {
    None,
    Saved(Box<SavedAdapter>),
    Fresh(Box<Fresh>),
}

impl Adapter {
    pub fn open(source: &AdapterSource) -> Result<Self> {
        Ok(match source {
            AdapterSource::None => Self::None,
            AdapterSource::Saved(folder) => Self::Saved(Box::new(SavedAdapter::open(folder)?)),
            AdapterSource::Fresh(settings) => Self::Fresh(Box::new(Fresh::new(settings))),
        })
    }

    /// A module's path as the adapter spells it.
    pub fn spelled(&self, module: &str) -> String {
        match self {
            Self::Saved(saved) => saved.spelled(module),
            Self::None | Self::Fresh(_) => module.to_owned(),
        }
    }

    /// What is left of a weight `[in, out]` where the adapter's initialisation took a part of it.
    pub fn rest<B: Kernels>(
        &self,
        module: &str,
        place: Place,
        weight: &Matrix<B>,
        on: (DType, &B::Device),
    ) -> Result<Option<FloatTensor<B>>> {
        let Self::Saved(saved) = self else { return Ok(None) };
        let (module, Place { layer, routed, .. }) = (saved.spelled(module), place);
        match saved.taken_apart.filter(|_| saved.targets(&module, layer, routed)) {
            None => Ok(None),
            Some(part) => part
                .rest::<B>(&weight.numbers(on.0), (saved.rank(&module), saved.scale_of(&module)), &module, on)
                .map(Some),
        }
    }

    /// `init_lora_weights`, where that took the base apart.
    pub fn taken_apart(&self) -> Option<&'static str> {
        match self {
            Self::Saved(saved) => saved.taken_apart.map(TakenApart::name),
            Self::None | Self::Fresh(_) => None,
        }
    }

    /// See [`SavedAdapter::tables_outline`].
    pub fn tables_outline(&self, of: &Description) -> TablesOutline {
        match self {
            Self::Saved(saved) => saved.tables_outline(of),
            Self::None | Self::Fresh(_) => TablesOutline::default(),
        }
    }

    /// See [`SavedAdapter::tables`].
    pub fn tables<B: Kernels>(
        &mut self,
        of: &Description,
        dtype: DType,
        device: &B::Device,
    ) -> Result<TableChanges<B>> {
        match self {
            Self::Saved(saved) => saved.tables::<B>(of, dtype, device),
            Self::None | Self::Fresh(_) => Ok(TableChanges::default()),
        }
    }

    /// Whether columns of the maps that it changes have learned lengths.
    pub fn has_magnitudes(&self) -> bool {
        matches!(self, Self::Saved(saved) if saved.magnitudes)
    }

    /// See [`SavedAdapter::fused_paths`].
    pub fn fused_paths(&self, list: &str) -> [Option<String>; 2] {
        match self {
            Self::Saved(saved) => saved.fused_paths(list),
            Self::None | Self::Fresh(_) => [None, None],
        }
    }

    /// See [`SavedAdapter::fused`].
    pub fn fused<B: Kernels>(
        &mut self,
        list: &str,
        kind: &ExpertsKind,
        hidden: usize,
        dtype: DType,
        device: &B::Device,
    ) -> Result<[Option<FusedLora<B>>; 2]> {
        match self {
            Self::Saved(saved) => saved.fused::<B>(list, kind, hidden, dtype, device),
            Self::None | Self::Fresh(_) => Ok([None, None]),
        }
    }

    /// Rank of a module's factors, `None` where the adapter leaves it alone.
    pub fn rank(&mut self, module: &str, Place { layer, attention, routed }: Place) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Saved(saved) => {
                let module = &saved.spelled(module);
                saved.targets(module, layer, routed).then(|| saved.rank(module))
            }
            Self::Fresh(fresh) => fresh.rank(module, attention),
        }
    }

    /// Factors for one module.
    pub fn factors<B: Kernels>(
        &mut self,
        module: &str,
        place: Place,
        weight: &Matrix<B>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Option<Lora<B>>> {
        match self {
            Self::None => Ok(None),
            Self::Saved(saved) => saved.factors::<B>(module, place, weight, dtype, device),
            Self::Fresh(fresh) => fresh.factors::<B>(module, place, weight, dtype, device),
        }
    }

    /// Gives a linear map its factors; `before` is what its name lacks of the full architecture's.
    pub fn attach<B: Kernels>(
        &mut self,
        map: &mut Linear<B>,
        before: &str,
        place: Place,
        on: (DType, &B::Device),
    ) -> Result<()> {
        map.lora = self.factors::<B>(&format!("{before}{}", map.name), place, &map.weight, on.0, on.1)?;
        Ok(())
    }

    /// Gives the linear maps of a block their factors; `attention` tells whether a path is of a projection of attention.
    pub fn attach_to_block<B: Kernels>(
        &mut self,
        block: &mut Block<B>,
        before: &str,
        (layer, attention): (usize, &dyn Fn(&str) -> bool),
        on: (DType, &B::Device),
    ) -> Result<()> {
        let mut attached = Ok(());
        block.visit(&mut |part| {
            let (map, routed) = match part {
                Part::Linear(map) => (map, false),
                Part::Expert(map) => (map, true),
                Part::Fused(_) | Part::Norm(_) | Part::Vector(_) => return,
            };
            if attached.is_ok() {
                let attention = attention(&format!("{before}{}", map.name));
                attached = self.attach(map, before, Place { layer: Some(layer), attention, routed }, on);
            }
        });
        attached
    }

    pub fn finish(&self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Saved(saved) => saved.finish(),
            Self::Fresh(fresh) => fresh.finish(),
        }
    }
}
