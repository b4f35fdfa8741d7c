//! Which windows of pairs have their gradients formed when, and which stay until others have met them.
use std::collections::BTreeSet;

/// A window whose gradients are formed, or read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Which window.
    pub window: usize,
    /// Whether it stays for those that come later in its round.
    pub stays: bool,
    /// The tiles that it completes: with windows that stay, itself among them where it is one.
    pub tiles: Vec<[usize; 2]>,
}

/// Rounds over windows that together come to every tile `[a, b]` (a ≤ b) that is wanted. In a round at most `room` windows stay, and every other
/// one that has a tile with one of them comes by once.
pub fn rounds(wanted: impl IntoIterator<Item = [usize; 2]>, room: usize) -> Vec<Vec<Visit>> {
    let mut left: BTreeSet<[usize; 2]> = wanted.into_iter().collect();
    let mut rounds = Vec::new();
    while !left.is_empty() {
        let firsts: BTreeSet<usize> = left.iter().map(|[a, _]| *a).collect();
        let stay: BTreeSet<usize> = firsts.into_iter().take(room.max(1)).collect();
        let (now, later): (BTreeSet<[usize; 2]>, _) = left.into_iter().partition(|[a, _]| stay.contains(a));
        let windows: BTreeSet<usize> = now.iter().flatten().copied().collect();
        let visit = |window: usize| Visit {
            window,
            stays: stay.contains(&window),
            tiles: now.iter().filter(|[_, b]| *b == window).copied().collect(),
        };
        rounds.push(windows.into_iter().map(visit).collect());
        left = later;
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::rounds;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_tile_comes_once_when_both_of_its_windows_are_there(
            windows in 1usize..9,
            room in 1usize..10,
            left_out in proptest::collection::btree_set((0usize..9, 0usize..9), 0..20),
        ) {
            let all = (0..windows).flat_map(|b| (0..=b).map(move |a| [a, b]));
            let wanted: Vec<[usize; 2]> = all.filter(|[a, b]| !left_out.contains(&(*a, *b))).collect();
            let rounds = rounds(wanted.iter().copied(), room);
            let mut seen = Vec::new();
            for round in &rounds {
                let mut there = BTreeSet::new();
                for visit in round {
                    for [a, b] in &visit.tiles {
                        prop_assert!(*b == visit.window && (there.contains(a) || a == b));
                        seen.push([*a, *b]);
                    }
                    if visit.stays {
                        there.insert(visit.window);
                    }
                    prop_assert!(there.len() <= room);
                    // nothing is formed for nothing
                    let later = round.iter().flat_map(|v| &v.tiles).any(|[a, _]| *a == visit.window);
                    prop_assert!(!visit.tiles.is_empty() || later);
                }
            }
            seen.sort_unstable();
            let mut wanted = wanted;
            wanted.sort_unstable();
            prop_assert_eq!(seen, wanted);
            if room >= windows {
                prop_assert!(rounds.len() <= 1);
            }
        }
    }
}
