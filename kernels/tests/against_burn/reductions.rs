//! Both Gram reductions against gradients that are formed whole.
use crate::support::{Random, close, expected, expected_in, rows, rows_of};
use crate::{TYPES, tensor};
use proptest::prelude::*;
use tanglescope_kernels::{Flex, Memory, Product, RowGram, RowSet, TileGram, gram, product, tile};

fn check(seed: u64, groups: &[(usize, Vec<usize>)], n: usize, [m, other]: [usize; 2]) {
    let mut random = Random::new(seed);
    let (rows, forward) = rows(&mut random, groups);
    let x = random.values(forward * n);
    let (delta, second) = (random.values(rows.rows() * m), random.values(rows.rows() * other));
    let want = [expected(&x, n, &delta, m, &rows), expected(&x, n, &second, other, &rows)];
    // rows that are sums of others, as those of one token are before the first attention
    let repeated: Vec<f64> = (0..forward * n).map(|at| x[at / n / 3 * 3 * n + at % n]).collect();
    let of_repeated = expected(&repeated, n, &delta, m, &rows);
    let roots = random.values(n * m);
    let in_metric = expected_in(&x, n, &delta, m, &rows, &roots);
    for (dtype, tolerance) in TYPES {
        let (x, delta, second) = (
            tensor(&x, [forward, n], dtype),
            tensor(&delta, [rows.rows(), m], dtype),
            tensor(&second, [rows.rows(), other], dtype),
        );
        let same = |got: &[Vec<f64>], want: &[Vec<f64>]| {
            assert_eq!(got.len(), want.len());
            got.iter().zip(want).for_each(|(got, want)| close(got, want, tolerance));
        };
        same(&Flex::gram_tile(&x, &delta, &rows, None), &want[0]);
        same(&tile::reference::gram_tile::<Flex>(&x, &delta, &rows, None), &want[0]);
        for (got, want) in Flex::gram_triangle(&x, &[&delta, &second], &rows).iter().zip(&want) {
            same(got, want);
        }
        let repeated = tensor(&repeated, [forward, n], dtype);
        same(&Flex::gram_triangle(&repeated, &[&delta], &rows)[0], &of_repeated);
        let up = tensor(&roots, [n, m], dtype);
        same(&Flex::gram_tile(&x, &delta, &rows, Some(&up)), &in_metric);
        same(&tile::reference::gram_tile::<Flex>(&x, &delta, &rows, Some(&up)), &in_metric);
        for both in [
            Flex::gram_rows(&x, &[&delta, &second], &rows),
            gram::reference::gram_rows::<Flex>(&x, &[&delta, &second], &rows),
        ] {
            same(&both[0], &want[0]);
            same(&both[1], &want[1]);
        }
        // bit for bit the same on a second run, whatever the threads did
        assert_eq!(Flex::gram_tile(&x, &delta, &rows, None), Flex::gram_tile(&x, &delta, &rows, None));
        assert_eq!(Flex::gram_rows(&x, &[&delta], &rows), Flex::gram_rows(&x, &[&delta], &rows));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn tile_and_gram_are_the_products_of_whole_gradients(
        seed: u64,
        groups in proptest::collection::vec((0usize..30, proptest::collection::vec(0usize..20, 1..4)), 1..4),
        n in 1usize..40, m in 1usize..40, other in 1usize..20,
    ) {
        check(seed, &groups, n, [m, other]);
    }
}

/// More rows than a tile of the row Grams has, and more columns than a tile of gradients.
#[test]
fn several_tiles() {
    check(3, &[(150, vec![140, 10]), (3, vec![5])], 560, [96, 700]);
    check(4, &[(2, vec![3, 4])], 16, [1200, 8]);
}

/// Gradients of some cotangents, and products of them with others': a few columns, and more than a panel and a task have.
#[test]
fn gradients_of_cotangents_and_their_products() {
    for (seed, groups, n, m) in
        [(1, vec![(9, vec![3, 7, 2]), (0, vec![4, 1])], 13, 5), (2, vec![(3, vec![2, 5])], 300, 250)]
    {
        let mut random = Random::new(seed);
        let (rows, forward) = rows(&mut random, &groups);
        let (x, delta) = (random.values(forward * n), random.values(rows.rows() * m));
        let all: Vec<usize> = (0..rows.cotangents()).collect();
        let joined = RowSet { sets: vec![0..rows.cotangents()], ..rows.clone() };
        let want = expected(&x, n, &delta, m, &joined).remove(0);
        for (dtype, tolerance) in TYPES {
            let (x, delta) = (tensor(&x, [forward, n], dtype), tensor(&delta, [rows.rows(), m], dtype));
            let found = Flex::weight_gradients(&x, &delta, &rows, &all);
            // those of some, in any order
            let some = Flex::download(&Flex::weight_gradients(&x, &delta, &rows, &[1, 0]));
            let whole = Flex::download(&found);
            assert_eq!(some, [&whole[n * m..2 * n * m], &whole[..n * m]].concat());
            if groups.iter().all(|(trunk, suffixes)| *trunk > 0 && !suffixes.contains(&7)) {
                let of_burn = product::reference::weight_gradients::<Flex>(&x, &delta, &rows, &all);
                close(&whole, &Flex::download(&of_burn), tolerance);
            }
            close(&Flex::row_products(&found, &found), &want, tolerance);
            close(&product::reference::row_products::<Flex>(&found, &found), &want, 10.0 * tolerance);
            assert_eq!(Flex::row_products(&found, &found), Flex::row_products(&found, &found));
        }
    }
}

/// The weight gradient that the whole-gradient sink and training use.
#[test]
fn weight_gradients_are_sums_of_outer_products() {
    let mut random = Random::new(5);
    let (n, m, r) = (37, 130, 90);
    let (x, delta) = (random.values(r * n), random.values(r * m));
    let used = 20..80;
    let (xs, ds) = (rows_of(&x, n, used.clone()), rows_of(&delta, m, used.clone()));
    let want: Vec<f64> =
        (0..n * m).map(|e| (0..used.len()).map(|row| xs[row * n + e / m] * ds[row * m + e % m]).sum()).collect();
    for (dtype, tolerance) in TYPES {
        let (x, delta) = (tensor(&x, [r, n], dtype), tensor(&delta, [r, m], dtype));
        close(&Flex::download(&Flex::weight_gradient(&x, &delta, used.clone())), &want, tolerance);
        close(
            &Flex::download(&product::reference::weight_gradient::<Flex>(&x, &delta, used.clone())),
            &want,
            tolerance,
        );
    }
}
