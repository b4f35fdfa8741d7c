//! Values against burn's tensor operations, and against loops where burn is what composes them.
use crate::support::{codes as coded_values, specs};
use crate::{Random, TYPES, close, rows_of, tensor};
use burn_tensor::{Tensor, TensorPrimitive};
use proptest::prelude::*;
use tanglescope_kernels::{
    Activate, Activation, Arithmetic, Attend, AttentionSpec, Coded, Codes, Flex, FlexDevice, FloatTensor, Grouped,
    Head, Memory, Norm, NormKind, Product, Rows, SoftCap, Span, Stretch, TensorData, Weight, activation, arithmetic,
    attention, norm, product, reference, rows,
};

/// Values of any result; burn's own can be views with strides.
fn down(x: &FloatTensor<Flex>) -> Vec<f64> {
    reference::host(Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(x.clone())))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Sizes on both sides of where a product is cut into one stripe a core.
    #[test]
    fn products(seed: u64, rows in 1usize..220, k in 1usize..70, m in 1usize..220, transposed: bool, onto: bool) {
        let mut random = Random::new(seed);
        let (x, w, start) = (random.values(rows * k), random.values(k * m), random.values(rows * m));
        let at = |i: usize, j: usize| if transposed { w[j * k + i] } else { w[i * m + j] };
        let want: Vec<f64> = (0..rows * m)
            .map(|e| {
                let (r, j) = (e / m, e % m);
                let sum: f64 = (0..k).map(|i| x[r * k + i] * at(i, j)).sum();
                0.5 * sum + if onto { start[e] } else { 0.0 }
            })
            .collect();
        for (dtype, tolerance) in TYPES {
            let (x, start) = (tensor(&x, [rows, k], dtype), tensor(&start, [rows, m], dtype));
            let w = tensor(&w, if transposed { [m, k] } else { [k, m] }, dtype);
            let onto = || onto.then(|| start.clone());
            close(&down(&Flex::matmul(&x, &w, transposed, 0.5, onto())), &want, tolerance);
            close(&down(&product::reference::matmul::<Flex>(&x, &w, transposed, 0.5, onto())), &want, tolerance);
        }
    }

    /// Codes are the numbers of the formula to the bit, whichever way the matrix lies, and products with them those with the numbers.
    #[test]
    fn codes(seed: u64, rows in 1usize..150, transposed: bool, as_transpose: bool, onto: bool) {
        let mut random = Random::new(seed);
        for spec in specs() {
            let (words, values) = coded_values(&mut random, spec);
            let words = Flex::upload(TensorData::new(words, [spec.words()]), &FlexDevice);
            let coded = Coded::<Flex>::new(words, spec, as_transpose);
            let value = |at: usize| values[if as_transpose { at / spec.rows + at % spec.rows * spec.columns } else { at }];
            let want: Vec<f64> = (0..values.len()).map(value).collect();
            let [of_rows, of_columns] = coded.dims();
            let (k, m) = if transposed { (of_columns, of_rows) } else { (of_rows, of_columns) };
            let (x, start) = (random.values(rows * k), random.values(rows * m));
            for (dtype, tolerance) in TYPES {
                let numbers = Flex::widen(&coded, dtype);
                prop_assert_eq!(&Flex::download(&numbers), &want);
                let (x, start) = (tensor(&x, [rows, k], dtype), tensor(&start, [rows, m], dtype));
                let onto = || onto.then(|| start.clone());
                let want = product::reference::matmul::<Flex>(&x, &numbers, transposed, 0.5, onto());
                let got = Flex::matmul_coded(&x, &coded, transposed, 0.5, onto());
                close(&down(&got), &down(&want), tolerance);
                let stretch = Stretch { rows: 0..rows, w: Weight::Coded(&coded), scale: 0.5 };
                close(&down(&Flex::grouped(&x, &[stretch], transposed, m, onto())), &down(&want), tolerance);
            }
        }
    }

    /// Rows of a table of codes, and the head over one, to the bit as with the numbers.
    #[test]
    fn tables_of_codes(seed: u64, rows in 1usize..20) {
        let mut random = Random::new(seed);
        for spec in specs() {
            let (words, _) = coded_values(&mut random, spec);
            let words = Flex::upload(TensorData::new(words, [spec.words()]), &FlexDevice);
            let coded = Coded::<Flex>::new(words, spec, false);
            let index: Vec<u32> = (0..rows).map(|_| u32::try_from(random.below(spec.rows)).unwrap()).collect();
            let y = random.values(rows * spec.columns);
            for (dtype, _) in TYPES {
                let numbers = Flex::widen(&coded, dtype);
                let (got, want) = (Flex::gather_coded(&coded, &index, dtype), Flex::gather(&numbers, &index, None));
                prop_assert_eq!(down(&got), down(&want));
                let y = tensor(&y, [rows, spec.columns], dtype);
                let got = Flex::head(&y, &Weight::Coded(&coded), &index, None, None);
                let want = Flex::head(&y, &Weight::Plain(&numbers), &index, None, None);
                prop_assert_eq!((got.logp, got.entropy), (want.logp, want.entropy));
                prop_assert_eq!(down(&got.back), down(&want.back));
            }
        }
    }

    #[test]
    fn row_wise_maps(seed: u64, rows in 1usize..40, d in 1usize..300, centred: bool) {
        let mut random = Random::new(seed);
        let kind = NormKind { centred, eps: 1e-6 };
        let (x, y) = (random.values(rows * d), random.values(rows * d));
        let (gain, bias) = (random.values(d), random.values(d));
        let index: Vec<u32> = (0..2 * rows).map(|_| u32::try_from(random.below(rows)).unwrap()).collect();
        let weights = random.values(index.len());
        for (dtype, tolerance) in TYPES {
            let (x, y) = (tensor(&x, [rows, d], dtype), tensor(&y, [rows, d], dtype));
            let (gain, bias) = (tensor(&gain, [d], dtype), tensor(&bias, [d], dtype));
            let same = |got: FloatTensor<Flex>, want: FloatTensor<Flex>| close(&down(&got), &down(&want), tolerance);
            same(Flex::norm(&x, &gain, Some(&bias), kind), norm::reference::norm::<Flex>(&x, &gain, Some(&bias), kind));
            for f in Activation::ALL {
                same(Flex::activate(f, &x, Some(&y)), activation::reference::activate::<Flex>(f, &x, Some(&y)));
                same(Flex::activate(f, &x, None), activation::reference::activate::<Flex>(f, &x, None));
            }
            same(Flex::add_bias(x.clone(), &bias), arithmetic::reference::add_bias::<Flex>(x.clone(), &bias));
            same(Flex::add_scaled(x.clone(), &y, -0.3), arithmetic::reference::add_scaled::<Flex>(x.clone(), &y, -0.3));
            let weights = Some(weights.as_slice());
            same(Flex::gather(&x, &index, weights), rows::reference::gather::<Flex>(&x, &index, weights));
            let many = Flex::gather(&x, &index, None);
            same(Flex::scatter_add(&many, &index, rows), rows::reference::scatter_add::<Flex>(&many, &index, rows));
            let cut = d / 3;
            let parts = Flex::split_columns(&x, &[cut, d - cut]);
            let burns = rows::reference::split_columns::<Flex>(&x, &[cut, d - cut]);
            parts.iter().zip(&burns).for_each(|(a, b)| assert_eq!(down(a), down(b)));
            assert_eq!(down(&Flex::join_columns(&parts)), down(&x));
            let offsets = [0, rows / 2, rows];
            let (got, want) = (Flex::segment_sums(&x, &offsets), rows::reference::segment_sums::<Flex>(&x, &offsets));
            close(&down(&got), &want.concat(), tolerance);
        }
    }

    /// A suffix that attends to its trunk sees what it would see in one sequence with it.
    #[test]
    fn attention_over_trunk_and_suffixes_is_attention_over_whole_sequences(
        seed: u64, trunk in 0usize..90, first in 1usize..80, second in 1usize..80,
        kv_heads in 1usize..3, repeat in 1usize..4, head_dim in 1usize..20,
        cap in proptest::option::of(0.5f64..4.0), window in proptest::option::of(1usize..150),
    ) {
        let mut random = Random::new(seed);
        let heads = AttentionSpec { heads: kv_heads * repeat, kv_heads, head_dim, scale: 0.4, cap: cap.map(SoftCap), window };
        let (qw, kw) = (heads.heads * head_dim, kv_heads * head_dim);
        let n = trunk + first + second;
        let (q, k, v) = (random.values(n * qw), random.values(n * kw), random.values(n * kw));
        let mut spans = vec![Span { prefix: 0..trunk, own: trunk..trunk + first }, Span { prefix: 0..trunk, own: trunk + first..n }];
        if trunk > 0 {
            spans.push(Span { prefix: 0..0, own: 0..trunk });
        }
        for (dtype, tolerance) in TYPES {
            let up = |values: &[f64], width: usize| tensor(values, [values.len() / width, width], dtype);
            let (shared, _) = Flex::attend(&up(&q, qw), &up(&k, kw), &up(&v, kw), &spans, heads);
            let shared = down(&shared);
            let burns = attention::reference::attend::<Flex>(&up(&q, qw), &up(&k, kw), &up(&v, kw), &spans, heads);
            close(&shared, &down(&burns), tolerance);
            for own in [trunk..trunk + first, trunk + first..n] {
                let index = || (0..trunk).chain(own.clone());
                let of = |values: &[f64], width: usize| up(&rows_of(values, width, index()), width);
                let whole = [Span { prefix: 0..0, own: 0..trunk + own.len() }];
                let alone = Flex::attend(&of(&q, qw), &of(&k, kw), &of(&v, kw), &whole, heads);
                close(&rows_of(&shared, qw, index()), &down(&alone.0), tolerance);
            }
        }
    }
}
