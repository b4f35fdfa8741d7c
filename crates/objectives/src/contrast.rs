//! Which tokens two responses do not share.

/// Whether each token of the two responses is outside one longest common subsequence of them: the contrast tokens, which
/// sparse objectives keep.
///
/// Of several longest subsequences, the one is taken whose tokens come earliest. Time and memory grow with the product of
/// the lengths that are left when common beginnings and ends are taken off.
///
/// ```
/// let [chosen, rejected] = tanglescope_objectives::contrast(&[1, 2, 3, 4], &[1, 3, 5, 4]);
/// assert_eq!(chosen, [false, true, false, false]);
/// assert_eq!(rejected, [false, false, true, false]);
/// ```
#[must_use]
pub fn contrast(chosen: &[u32], rejected: &[u32]) -> [Vec<bool>; 2] {
    let alike = |a: &mut dyn Iterator<Item = &u32>, b: &mut dyn Iterator<Item = &u32>| {
        a.zip(b).take_while(|(a, b)| a == b).count()
    };
    let front = alike(&mut chosen.iter(), &mut rejected.iter());
    let (a, b) = (&chosen[front..], &rejected[front..]);
    let back = alike(&mut a.iter().rev(), &mut b.iter().rev());
    let (a, b) = (&a[..a.len() - back], &b[..b.len() - back]);
    // longest[i][j]: of a from i on and b from j on
    let width = b.len() + 1;
    let mut longest = vec![0u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = if a[i] == b[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let mut out = [vec![false; chosen.len()], vec![false; rejected.len()]];
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let here = longest[i * width + j];
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && longest[(i + 1) * width + j] == here {
            out[0][front + i] = true;
            i += 1;
        } else {
            out[1][front + j] = true;
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::contrast;
    use proptest::prelude::*;

    fn shared(of: &[u32], contrast: &[bool]) -> Vec<u32> {
        of.iter().zip(contrast).filter(|(_, contrast)| !**contrast).map(|(token, _)| *token).collect()
    }

    /// The length by the plain recursion.
    fn longest(a: &[u32], b: &[u32]) -> usize {
        match (a, b) {
            ([x, a @ ..], [y, b @ ..]) if x == y => 1 + longest(a, b),
            ([_, rest_a @ ..], [_, rest_b @ ..]) => longest(rest_a, b).max(longest(a, rest_b)),
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn what_is_shared_is_a_longest_common_subsequence(
            a in proptest::collection::vec(0u32..4, 0..9), b in proptest::collection::vec(0u32..4, 0..9),
        ) {
            let [in_a, in_b] = contrast(&a, &b);
            let (of_a, of_b) = (shared(&a, &in_a), shared(&b, &in_b));
            prop_assert_eq!(&of_a, &of_b);
            prop_assert_eq!(of_a.len(), longest(&a, &b));
        }
    }
}
