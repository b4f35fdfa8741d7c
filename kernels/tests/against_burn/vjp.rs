//! Vector–Jacobian products against burn's autodiff.
use crate::support::check_certain_rows;
use crate::{Auto, Random, TYPES, close, gradient, leaf, primitive, rows_of, tensor, wrap};
use proptest::prelude::*;
use std::ops::Range;
use tanglescope_kernels::{
    Activate, Activation, Arithmetic, Attend, AttentionSpec, Convolve, DeltaInputs, DeltaRule, DeltaSpec, Flex,
    FlexDevice, Grouped, Head, HeadCotangents, Memory, Norm, NormKind, Pairs, Rotary, Rows, Segment, SoftCap, Span,
    Stretch, Weight, activation, attention, convolution, delta, norm, rotary,
};

/// Spans of a trunk and its suffixes, suffixes first, segments of a part of each and of the trunk, and the number of rows.
fn sequences(random: &mut Random, trunk: usize, suffixes: Vec<usize>) -> (Vec<Span>, Vec<Segment>, usize) {
    let (mut spans, mut segments, mut first) = (Vec::new(), Vec::new(), trunk);
    for suffix in suffixes {
        spans.push(Span { prefix: 0..trunk, own: first..first + suffix });
        segments.push(Segment { prefix: 0..trunk, own: first..first + 1 + random.below(suffix), active_from: 0 });
        first += suffix;
    }
    if trunk > 0 {
        spans.push(Span { prefix: 0..0, own: 0..trunk });
        segments.push(Segment { prefix: 0..1 + random.below(trunk), own: 0..0, active_from: 0 });
    }
    (spans, segments, first)
}

/// Backward rows over forward rows, with repetitions.
fn index(random: &mut Random, backward: usize, forward: usize) -> Vec<u32> {
    (0..backward).map(|_| u32::try_from(random.below(forward)).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn norms(seed: u64, forward in 1usize..12, backward in 1usize..40, d in 1usize..700, centred: bool, onto: bool) {
        let mut random = Random::new(seed);
        let kind = NormKind { centred, eps: 1e-5 };
        let (x, gain) = (random.values(forward * d), random.values(d));
        let index = index(&mut random, backward, forward);
        let (delta, start) = (random.values(backward * d), random.values(backward * d));

        // one copy of its forward row for each backward row
        let rows = leaf(&rows_of(&x, d, index.iter().map(|&i| i as usize)), [backward, d]);
        let gain_leaf = leaf(&gain, [d]);
        let y = wrap::<2>(norm::reference::norm::<Auto>(&primitive(&rows), &primitive(&gain_leaf), None, kind));
        let gradients = (y * leaf(&delta, [backward, d])).sum().backward();
        let mut want = gradient(&rows, &gradients);
        if onto {
            want.iter_mut().zip(&start).for_each(|(want, start)| *want += start);
        }

        for (dtype, tolerance) in TYPES {
            let up = |values: &[f64], shape: &[usize]| tensor(values, shape, dtype);
            let (x, gain, delta) = (up(&x, &[forward, d]), up(&gain, &[d]), up(&delta, &[backward, d]));
            let onto = onto.then(|| up(&start, &[backward, d]));
            close(&Flex::download(&Flex::norm_vjp(&x, &gain, kind, &delta, &index, onto)), &want, tolerance);
            let terms = Flex::norm_gain_terms(&x, kind, &delta, &index);
            let sums = Flex::segment_sums(&terms, &[0, backward]);
            close(&Flex::download(&sums), &gradient(&gain_leaf, &gradients), tolerance);
        }
    }

    #[test]
    fn activations(seed: u64, forward in 1usize..12, backward in 1usize..40, width in 1usize..90, gated: bool) {
        let mut random = Random::new(seed);
        let (a, b) = (random.values(forward * width), random.values(forward * width));
        let index = index(&mut random, backward, forward);
        let delta = random.values(backward * width);
        let copies = |values: &[f64]| rows_of(values, width, index.iter().map(|&i| i as usize));
        for f in Activation::ALL {
            let (a_leaf, b_leaf) = (leaf(&copies(&a), [backward, width]), leaf(&copies(&b), [backward, width]));
            let gate = gated.then(|| primitive(&b_leaf));
            let y = wrap::<2>(activation::reference::activate::<Auto>(f, &primitive(&a_leaf), gate.as_ref()));
            let gradients = (y * leaf(&delta, [backward, width])).sum().backward();
            for (dtype, tolerance) in TYPES {
                let up = |values: &[f64], rows: usize| tensor(values, [rows, width], dtype);
                let gate = gated.then(|| up(&b, forward));
                let (da, db) = Flex::activate_vjp(f, &up(&a, forward), gate.as_ref(), &up(&delta, backward), &index);
                close(&Flex::download(&da), &gradient(&a_leaf, &gradients), tolerance);
                prop_assert_eq!(db.is_some(), gated);
                if let Some(db) = db {
                    close(&Flex::download(&db), &gradient(&b_leaf, &gradients), tolerance);
                }
            }
        }
    }

    /// Stretches of rows against products of each by itself; rows of none are left alone.
    #[test]
    fn grouped(
        seed: u64, lengths in proptest::collection::vec(0usize..9, 1..6), gap in 0usize..3, k in 1usize..40, m in 1usize..70,
        transposed: bool, adds: bool,
    ) {
        let mut random = Random::new(seed);
        let rows = lengths.iter().sum::<usize>() + gap * lengths.len();
        prop_assume!(rows > 0);
        let shape = if transposed { [m, k] } else { [k, m] };
        let (x, onto) = (random.values(rows * k), random.values(rows * m));
        let matrices: Vec<Vec<f64>> = lengths.iter().map(|_| random.values(k * m)).collect();
        for (dtype, tolerance) in TYPES {
            let matrices: Vec<_> = matrices.iter().map(|w| tensor(w, shape, dtype)).collect();
            let mut first = 0;
            let stretches: Vec<Stretch<'_, Flex>> = lengths.iter().zip(&matrices).enumerate().map(|(n, (&length, w))| {
                let rows = first..first + length;
                first += length + gap;
                Stretch { rows, w: Weight::Plain(w), scale: 1.0 + n as f64 }
            }).collect();
            let of = |values: &[f64], width: usize| tensor(values, [rows, width], dtype);
            let got = Flex::grouped(&of(&x, k), &stretches, transposed, m, adds.then(|| of(&onto, m)));
            let mut want = if adds { onto.clone() } else { vec![0.0; rows * m] };
            for (stretch, w) in stretches.iter().zip(&matrices) {
                let w = Flex::download(w);
                for r in stretch.rows.clone() {
                    for c in 0..m {
                        let at = |i: usize| if transposed { w[c * k + i] } else { w[i * m + c] };
                        want[r * m + c] += stretch.scale * (0..k).map(|i| x[r * k + i] * at(i)).sum::<f64>();
                    }
                }
            }
            close(&Flex::download(&got), &want, tolerance);
        }
    }

    /// What is cut, and the cotangents of what was not.
    #[test]
    fn cut(seed: u64, rows in 1usize..12, width in 1usize..9, backward in 1usize..20) {
        let mut random = Random::new(seed);
        let (x, delta) = (random.values(rows * width), random.values(backward * width));
        let index = index(&mut random, backward, rows);
        for (dtype, tolerance) in TYPES {
            let (x, delta) = (tensor(&x, [rows, width], dtype), tensor(&delta, [backward, width], dtype));
            let (values, deltas) = (Flex::download(&x), Flex::download(&delta));
            for bounds in [[-0.7, 0.5], [f64::NEG_INFINITY, 0.3]] {
                let want: Vec<f64> = values.iter().map(|x| x.clamp(bounds[0], bounds[1])).collect();
                close(&Flex::download(&Flex::cut(x.clone(), bounds)), &want, tolerance);
                let of = |r: usize, c: usize| values[index[r] as usize * width + c];
                let within = |at: usize| (bounds[0]..=bounds[1]).contains(&of(at / width, at % width));
                let want: Vec<f64> = (0..backward * width).map(|at| if within(at) { deltas[at] } else { 0.0 }).collect();
                close(&Flex::download(&Flex::cut_vjp(&x, bounds, delta.clone(), &index)), &want, tolerance);
            }
        }
    }

    #[test]
    fn rotary(seed: u64, rows in 1usize..30, heads in 1usize..4, half in 1usize..10, left in 0usize..5, neighbours: bool) {
        let mut random = Random::new(seed);
        let pairs = if neighbours { Pairs::Neighbours } else { Pairs::Halves };
        let head_dim = 2 * half + left;
        let width = heads * head_dim;
        let (x, delta, angles) = (random.values(rows * width), random.values(rows * width), random.values(rows * half));
        let cos: Vec<f64> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f64> = angles.iter().map(|a| a.sin()).collect();
        let (x_leaf, of) = (leaf(&x, [rows, width]), |t: &[f64]| primitive(&leaf(t, [rows, half])));
        let y = wrap::<2>(rotary::reference::rotary::<Auto>(primitive(&x_leaf), &of(&cos), &of(&sin), None, (head_dim, pairs), false));
        let gradients = (y * leaf(&delta, [rows, width])).sum().backward();
        for (dtype, tolerance) in TYPES {
            let up = |values: &[f64], width: usize| tensor(values, [rows, width], dtype);
            let back = Flex::rotary(up(&delta, width), &up(&cos, half), &up(&sin, half), None, (head_dim, pairs), true);
            close(&Flex::download(&back), &gradient(&x_leaf, &gradients), tolerance);
        }
    }

    /// The gated delta rule, and a short convolution, of whole sequences: a cotangent has its own copy of the trunk and of a part of its suffix.
    #[test]
    fn delta_rule_and_convolution(
        seed: u64, trunk in 0usize..20, suffixes in proptest::collection::vec(1usize..15, 1..3),
        key_heads in 1usize..3, shared in 1usize..3, key_dim in 1usize..9, value_dim in 1usize..70, taps in 1usize..5,
    ) {
        let mut random = Random::new(seed);
        let spec = DeltaSpec { key_heads, value_heads: key_heads * shared, key_dim, value_dim };
        let (kw, vw, heads) = (key_heads * key_dim, spec.value_heads * value_dim, spec.value_heads);
        let (spans, segments, n) = sequences(&mut random, trunk, suffixes);
        // keys of length one or less, and gates between 0 and 1, as the layer makes them
        let unit = |values: Vec<f64>| values.into_iter().map(|x| x / (key_dim as f64).sqrt()).collect::<Vec<_>>();
        let (q, k, v) = (random.values(n * kw), unit(random.values(n * kw)), random.values(n * vw));
        let decay: Vec<f64> = random.values(n * heads).iter().map(|x| -x.abs()).collect();
        let beta: Vec<f64> = random.values(n * heads).iter().map(|x| x.abs()).collect();
        let w = random.values(vw * taps);
        let inputs = [(&q, kw), (&k, kw), (&v, vw), (&decay, heads), (&beta, heads)];
        let (mut delta, mut want, mut of_convolution) = (Vec::new(), [(); 5].map(|()| Vec::new()), [(); 2].map(|()| Vec::new()));
        for segment in &segments {
            let length = segment.len();
            let here = random.values(length * vw);
            let rows = |values: &[f64], width: usize| rows_of(values, width, segment.prefix.clone().chain(segment.own.clone()));
            let leaves = inputs.map(|(values, width)| leaf(&rows(values, width), [length, width]));
            let [q, k, v, decay, beta] = leaves.each_ref().map(primitive);
            let of = DeltaInputs { q: &q, k: &k, v: &v, decay: &decay, beta: &beta };
            let y = wrap::<2>(delta::reference::delta_rule::<Auto>(&of, spec));
            let gradients = (y * leaf(&here, [length, vw])).sum().backward();
            want.iter_mut().zip(&leaves).for_each(|(want, leaf)| want.extend(gradient(leaf, &gradients)));
            let weights = leaf(&w, [vw * taps]);
            let y = wrap::<2>(convolution::reference::convolve::<Auto>(&v, &primitive(&weights), taps));
            let gradients = (y * leaf(&here, [length, vw])).sum().backward();
            of_convolution[0].extend(gradient(&leaves[2], &gradients));
            of_convolution[1].extend(gradient(&weights, &gradients));
            delta.extend(here);
        }
        for (dtype, tolerance) in TYPES {
            let up = |values: &[f64], width: usize| tensor(values, [values.len() / width, width], dtype);
            let [q, k, v, decay, beta] = inputs.map(|(values, width)| up(values, width));
            let of = DeltaInputs { q: &q, k: &k, v: &v, decay: &decay, beta: &beta };
            let (out, errors) = Flex::delta_rule(&of, &spans, spec);
            let delta = up(&delta, vw);
            let got = Flex::delta_rule_vjp(&of, (&out, &errors), &delta, &segments, spec);
            got.iter().zip(&want).for_each(|(got, want)| close(&Flex::download(got), want, tolerance));
            // a cotangent that ends in the trunk is not among the spans
            for (segment, span) in segments.iter().filter(|segment| !segment.own.is_empty()).zip(&spans) {
                let rows = |values: &[f64], width| up(&rows_of(values, width, span.prefix.clone().chain(span.own.clone())), width);
                let [q, k, v, decay, beta] = inputs.map(|(values, width)| rows(values, width));
                let of = DeltaInputs { q: &q, k: &k, v: &v, decay: &decay, beta: &beta };
                let whole = Flex::download(&delta::reference::delta_rule::<Flex>(&of, spec));
                close(&rows_of(&Flex::download(&out), vw, segment.own.clone()), &whole[span.prefix.len() * vw..][..segment.own.len() * vw], tolerance);
            }
            let w = tensor(&w, [vw * taps], dtype);
            let back = Flex::convolve(&delta, &w, taps, &convolution::rows_behind(&segments, taps));
            close(&Flex::download(&back), &of_convolution[0], tolerance);
            let terms = Flex::convolve_terms(&v, taps, &delta, &convolution::forward_rows_before(&segments, taps));
            let offsets: Vec<usize> = std::iter::once(0).chain(segments.iter().scan(0, |end, s| { *end += s.len(); Some(*end) })).collect();
            close(&Flex::download(&Flex::segment_sums(&terms, &offsets)), &of_convolution[1], tolerance);
            let y = Flex::convolve(&v, &w, taps, &convolution::rows_before(&spans, n, taps));
            let span = &spans[0];
            let rows = rows_of(&Flex::download(&v), vw, span.prefix.clone().chain(span.own.clone()));
            let whole = convolution::reference::convolve::<Flex>(&up(&rows, vw), &w, taps);
            close(&rows_of(&Flex::download(&y), vw, span.own.clone()), &Flex::download(&whole)[span.prefix.len() * vw..], tolerance);
        }
    }

    /// Every cotangent has its own copy of the trunk's rows and of a part of its suffix, and may be zero at first.
    #[test]
    fn attention(
        seed: u64, trunk in 0usize..90, suffixes in proptest::collection::vec(1usize..80, 1..3),
        kv_heads in 1usize..3, repeat in 1usize..4, head_dim in 1usize..20, late: bool,
        cap in proptest::option::of(0.5f64..4.0), window in proptest::option::of(1usize..150),
    ) {
        let mut random = Random::new(seed);
        let cap = cap.map(SoftCap);
        let heads = AttentionSpec { heads: kv_heads * repeat, kv_heads, head_dim, scale: 0.3, cap, window };
        let (qw, kw) = (heads.heads * head_dim, kv_heads * head_dim);
        let n = trunk + suffixes.iter().sum::<usize>();
        let (q, k, v) = (random.values(n * qw), random.values(n * kw), random.values(n * kw));
        let mut segments = Vec::new();
        let mut first = trunk;
        for suffix in suffixes {
            let reach = 1 + random.below(suffix);
            let active_from = if late { random.below(trunk + reach) } else { 0 };
            segments.push(Segment { prefix: 0..trunk, own: first..first + reach, active_from });
            first += suffix;
        }
        // a cotangent whose last token is in the trunk
        if trunk > 0 {
            segments.push(Segment { prefix: 0..1 + random.below(trunk), own: 0..0, active_from: 0 });
        }
        let (mut delta, mut want) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
        for segment in &segments {
            let length = segment.len();
            let mut here = random.values(length * qw);
            here[..segment.active_from * qw].fill(0.0);
            let index = || segment.prefix.clone().chain(segment.own.clone());
            let of = |values: &[f64], width: usize| leaf(&rows_of(values, width, index()), [length, width]);
            let leaves = [of(&q, qw), of(&k, kw), of(&v, kw)];
            let causal = [Span { prefix: 0..0, own: 0..length }];
            let [q, k, v] = leaves.each_ref().map(primitive);
            let y = wrap::<2>(attention::reference::attend::<Auto>(&q, &k, &v, &causal, heads));
            let gradients = (y * leaf(&here, [length, qw])).sum().backward();
            for (want, leaf) in want.iter_mut().zip(&leaves) {
                want.extend(gradient(leaf, &gradients));
            }
            delta.extend(here);
        }
        for (dtype, tolerance) in TYPES {
            let up = |values: &[f64], width: usize| tensor(values, [values.len() / width, width], dtype);
            let (q, k, v, delta) = (up(&q, qw), up(&k, kw), up(&v, kw), up(&delta, qw));
            // rows of every branch, as the forward pass sees them
            let spans: Vec<Span> = (segments.iter().filter(|s| !s.own.is_empty()))
                .map(|s| Span { prefix: 0..trunk, own: s.own.start..s.own.end })
                .chain((trunk > 0).then_some(Span { prefix: 0..0, own: 0..trunk }))
                .collect();
            let (out, normaliser) = Flex::attend(&q, &k, &v, &spans, heads);
            let forward = (&out, &normaliser);
            let got = Flex::attend_vjp([&q, &k, &v], forward, &delta, &segments, heads);
            for (got, want) in got.iter().zip(&want) {
                close(&Flex::download(got), want, tolerance);
            }
            let got = attention::reference::attend_vjp::<Flex>(&q, &k, &v, &delta, &segments, heads);
            for (got, want) in got.iter().zip(&want) {
                close(&Flex::download(got), want, tolerance);
            }
        }
    }

    #[test]
    fn head(seed: u64, sets in proptest::collection::vec(1usize..9, 1..4), d in 1usize..24, vocabulary in 1usize..60,
        cap in proptest::option::of(0.5f64..8.0)) {
        check_head(seed, &sets, d, vocabulary, cap);
    }
}

/// A vocabulary that takes several chunks, the last one not full.
#[test]
fn head_over_several_chunks_of_the_vocabulary() {
    check_head(7, &[5, 3], 16, 9000, None);
    check_head(8, &[5, 3], 16, 9000, Some(3.0));
}

/// Tokens that are all but certain have gradients all the same, and squares of those are not below zero.
#[test]
fn head_of_rows_that_are_all_but_certain() {
    check_certain_rows::<Flex>(&FlexDevice);
}

fn check_head(seed: u64, sets: &[usize], d: usize, vocabulary: usize, cap: Option<f64>) {
    let mut random = Random::new(seed);
    let n: usize = sets.iter().sum();
    let mut first = 0;
    let sets: Vec<Range<usize>> = sets
        .iter()
        .map(|rows| {
            first += rows;
            first - rows..first
        })
        .collect();
    let (y, w) = (random.values(n * d), random.values(vocabulary * d));
    let targets: Vec<u32> = index(&mut random, n, vocabulary);
    let (y_leaf, w_leaf) = (leaf(&y, [n, d]), leaf(&w, [vocabulary, d]));
    let logits = y_leaf.clone().matmul(w_leaf.clone().transpose());
    let logits = match cap {
        None => logits,
        // burn's own tanh on the CPU is right to 1e-8 only
        Some(cap) => (burn_tensor::activation::sigmoid(logits * (2.0 / cap)) * 2.0 - 1.0) * cap,
    };
    let all_slopes: Vec<f64> = match cap {
        None => vec![1.0; n * vocabulary],
        Some(cap) => crate::host(logits.clone()).iter().map(|z| SoftCap(cap).slope(*z)).collect(),
    };
    let logp = burn_tensor::activation::log_softmax(logits, 1);
    let all = crate::host(logp.clone());
    let mut onehot = vec![0.0; n * vocabulary];
    targets.iter().enumerate().for_each(|(row, &token)| onehot[row * vocabulary + token as usize] = 1.0);
    let want_logp: Vec<f64> = targets.iter().enumerate().map(|(r, &t)| all[r * vocabulary + t as usize]).collect();
    let gradients = (logp * leaf(&onehot, [n, vocabulary])).sum().backward();
    let want_back = gradient(&y_leaf, &gradients);
    let e: Vec<f64> =
        onehot.iter().zip(&all).zip(&all_slopes).map(|((one, logp), slope)| (one - logp.exp()) * slope).collect();
    let want_entropy: Vec<f64> =
        all.chunks_exact(vocabulary).map(|row| -row.iter().map(|l| l * l.exp()).sum::<f64>()).collect();
    let want_renyi: Vec<f64> =
        all.chunks_exact(vocabulary).map(|row| -row.iter().map(|l| (2.0 * l).exp()).sum::<f64>().ln()).collect();
    let want_mass: Vec<f64> =
        all.chunks_exact(vocabulary).map(|row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max).exp()).collect();
    let row = |values: &[f64], r: usize, width: usize| values[r * width..][..width].to_vec();
    let dot = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let term = |r, s| dot(row(&e, r, vocabulary), row(&e, s, vocabulary)) * dot(row(&y, r, d), row(&y, s, d));
    // two cotangents a set: every row (of every other set, every third alone), and some of them with weights
    let mut weights: Vec<Vec<(usize, f64)>> = Vec::new();
    let mut of_set: Vec<Range<usize>> = Vec::new();
    for (at, set) in sets.iter().enumerate() {
        of_set.push(weights.len()..weights.len() + 2);
        weights.push(set.clone().step_by(if at % 2 == 0 { 1 } else { 3 }).map(|r| (r, 1.0)).collect());
        weights.push(set.clone().step_by(2).map(|r| (r, random.values(1)[0])).collect());
    }
    let product = |i: &[(usize, f64)], j: &[(usize, f64)]| -> f64 {
        i.iter().map(|&(r, a)| j.iter().map(|&(s, b)| a * b * term(r, s)).sum::<f64>()).sum()
    };
    for (dtype, tolerance) in TYPES {
        let (y, w) = (tensor(&y, [n, d], dtype), tensor(&w, [vocabulary, d], dtype));
        let cotangents = HeadCotangents { weights: &weights, sets: &of_set };
        let out = Flex::head(&y, &Weight::Plain(&w), &targets, cap.map(SoftCap), Some(&cotangents));
        close(&out.logp, &want_logp, tolerance);
        close(&out.entropy, &want_entropy, tolerance);
        close(&out.renyi, &want_renyi, tolerance);
        close(&out.argmax_mass, &want_mass, tolerance);
        // tokens within 1e-4 of each other may change places
        for (r, (row, &target)) in all.chunks_exact(vocabulary).zip(&targets).enumerate() {
            let above = |margin: f64| row.iter().filter(|logp| **logp > row[target as usize] + margin).count() as u64;
            assert!((above(1e-4)..=above(-1e-4)).contains(&(u64::from(out.rank[r]) - 1)), "{}", out.rank[r]);
        }
        close(&Flex::download(&out.back), &want_back, tolerance);
        for (gram, set) in out.gram.unwrap().iter().zip(&of_set) {
            let pairs = set.clone().flat_map(|i| set.clone().map(move |j| (i, j)));
            let want: Vec<f64> = pairs.map(|(i, j)| product(&weights[i], &weights[j])).collect();
            close(gram, &want, tolerance);
        }
    }
}
