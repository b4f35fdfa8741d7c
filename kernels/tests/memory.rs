//! What the reductions and the head hold at their peak: nothing of the size of a gradient, or of rows × vocabulary.
mod support;

use peak_alloc::PeakAlloc;
use support::{Random, rows};
use tanglescope_kernels::{
    DType, Flex, FlexDevice, FloatTensor, Head, HeadCotangents, Memory, RowGram, TensorData, TileGram, Weight,
};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn upload(values: Vec<f64>, shape: [usize; 2]) -> FloatTensor<Flex> {
    Flex::upload(TensorData::new(values, shape).convert_dtype(DType::F32), &FlexDevice)
}

/// Bytes that `run` holds at its peak beyond what was held before, once its threads have their scratch memory.
fn peak(mut run: impl FnMut()) -> usize {
    run();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    run();
    MEMORY.peak_usage() - before
}

/// One test, since all threads of a process share its memory.
#[test]
fn nothing_of_the_size_of_a_gradient_or_of_all_logits_is_held() {
    let threads = rayon::current_num_threads();
    let mut random = Random::new(5);
    let (set, forward) = rows(&mut random, &[(40, vec![31, 23])]);
    let backward = set.rows();
    println!("{backward} backward rows over {forward} forward rows, two cotangents; {threads} threads");
    let mut tiles = Vec::new();
    for side in [256, 1024, 2048, 4096] {
        let x = upload(random.values(forward * side), [forward, side]);
        let delta = upload(random.values(backward * side), [backward, side]);
        let tile = peak(|| drop(Flex::gram_tile(&x, &delta, &set, None)));
        let gram = peak(|| drop(Flex::gram_rows(&x, &[&delta], &set)));
        let gradients = 2 * side * side * 4;
        println!("{side:>5} × {side:<5} tile {tile:>9} B, gram {gram:>9} B, both gradients {gradients:>10} B");
        // gram transposes its two factors, and holds x·xᵀ and a panel of δ·δᵀ a thread
        let panels = 4 * (forward * forward + threads * 192 * (512 + 2 * forward));
        let transposed = 4 * side * (forward + backward);
        assert!(gram <= transposed + panels + (1 << 20), "gram of {side} × {side}: {gram} B");
        tiles.push(tile);
    }
    // half a MiB of tiles a thread, and a list of them
    assert!(tiles.iter().all(|&tile| tile <= threads * (1 << 20) + (1 << 20)), "{tiles:?}");

    let (n, d) = (192, 64);
    let y = upload(random.values(n * d), [n, d]);
    let targets: Vec<u32> = (0..192).collect();
    let weights = vec![(0..96).map(|r| (r, 1.0)).collect::<Vec<_>>(), (96..192).map(|r| (r, 1.0)).collect()];
    let sets = vec![0..2];
    let cotangents = HeadCotangents { weights: &weights, sets: &sets };
    let mut heads = Vec::new();
    for vocabulary in [4096, 16_384, 65_536, 131_072] {
        let w = upload(random.values(vocabulary * d), [vocabulary, d]);
        let head = peak(|| drop(Flex::head(&y, &Weight::Plain(&w), &targets, None, Some(&cotangents))));
        let logits = n * vocabulary * 4;
        println!("{n} rows × {vocabulary:<6} tokens: head {head:>9} B, all logits {logits:>10} B");
        heads.push(head);
    }
    // nothing grows with the vocabulary; threads meet at other times in another run
    assert!(heads.iter().all(|&head| head <= heads[0] + heads[0] / 4 + (1 << 18)), "{heads:?}");
}
