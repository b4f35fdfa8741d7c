//! An enum of layers that is a layer itself, and the enum of their traces.

/// `one_of!(Name, NameTrace, mixes rows, { Variant(Layer, LayerTrace), … })`, each with its documentation.
macro_rules! one_of {
    (
        $(#[$doc:meta])* $name:ident, $trace:ident, $mixes:expr,
        { $($(#[$of:meta])* $variant:ident($layer:ident, $layer_trace:ident)),+ $(,)? }
    ) => {
        $(#[$doc])*
        // a block has one, beside its matrices
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, Debug)]
        pub enum $name<B: tanglescope_kernels::Kernels> {
            $($(#[$of])* $variant($layer<B>)),+
        }

        #[doc = concat!("What the forward pass of a [`", stringify!($name), "`] leaves.")]
        #[allow(clippy::large_enum_variant)]
        #[derive(Debug)]
        pub enum $trace<B: tanglescope_kernels::Kernels> {
            $($(#[$of])* $variant($layer_trace<B>)),+
        }

        impl<B: tanglescope_kernels::Kernels> crate::layers::Layer<B> for $name<B> {
            type Trace = $trace<B>;

            const MIXES_ROWS: bool = $mixes;

            fn forward(
                &self,
                x: &tanglescope_kernels::FloatTensor<B>,
                onto: Option<tanglescope_kernels::FloatTensor<B>>,
                rows: &crate::layers::Forward<'_, B>,
            ) -> (tanglescope_kernels::FloatTensor<B>, Self::Trace) {
                match self {
                    $(Self::$variant(layer) => {
                        let (y, trace) = layer.forward(x, onto, rows);
                        (y, $trace::$variant(trace))
                    }),+
                }
            }

            fn vjp(
                &self,
                trace: &Self::Trace,
                x: &dyn Fn() -> tanglescope_kernels::FloatTensor<B>,
                delta: &tanglescope_kernels::FloatTensor<B>,
                onto: Option<tanglescope_kernels::FloatTensor<B>>,
                needs: crate::needs::LayerNeeds,
                pass: &mut crate::layers::Backward<'_, B>,
            ) -> Option<tanglescope_kernels::FloatTensor<B>> {
                match (self, trace) {
                    $((Self::$variant(layer), $trace::$variant(trace)) => {
                        layer.vjp(trace, x, delta, onto, needs, pass)
                    }),+
                    // unreachable while the enum has one variant
                    #[allow(unreachable_patterns)]
                    _ => unreachable!("a trace is of the layer that left it"),
                }
            }

            fn visit(&mut self, f: &mut crate::layers::Visitor<'_, B>) {
                match self {
                    $(Self::$variant(layer) => layer.visit(f)),+
                }
            }
        }

        impl<B: tanglescope_kernels::Kernels> $name<B> {
            pub(crate) fn convert<C: tanglescope_kernels::Kernels>(
                &self,
                f: &impl Fn(&tanglescope_kernels::FloatTensor<B>) -> tanglescope_kernels::FloatTensor<C>,
            ) -> $name<C> {
                match self {
                    $(Self::$variant(layer) => $name::$variant(layer.convert(f))),+
                }
            }
        }
    };
}

pub(super) use one_of;
