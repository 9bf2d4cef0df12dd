//! Tables of backends for the kernel: any one is found by one look, whatever the weights.
//!
//! [`weighted`] is Vose's form of Walker's alias method. [`maglev`] is the table of Google's Maglev (NSDI 2016, 3.4): who
//! falls on a slot keeps its backend when others come and go, but for a few.

use std::hash::{BuildHasher, Hash};

use agent_common::balance::{End, SlotValue};
use foldhash::fast::FixedState;

/// Slots of a Maglev table; prime. Each backend's share is even to about one part in the slots that it has.
pub const MAGLEV_SLOTS: usize = 1021;
/// Slots of one with more than [`MAGLEV_FEW`] backends; prime.
pub const MAGLEV_SLOTS_MANY: usize = 16_381;
/// Up to so many backends have ten slots and more in the smaller table.
pub const MAGLEV_FEW: usize = 100;

/// 2^32: the whole of a slot.
const WHOLE: u64 = 1 << 32;

/// The same in every process: tables must not change with the agent's restart.
pub(super) fn hash(value: &impl Hash) -> u64 {
    FixedState::with_seed(0x51_1CE).hash_one(value)
}

/// One slot for each backend, shared so that a random draw meets each by its weight. Backends without weight have no slot;
/// empty where none has any.
pub fn weighted(backends: &[(End, u32)]) -> Vec<SlotValue> {
    let backends: Vec<(End, u64)> = backends
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(end, weight)| (*end, (*weight).into()))
        .collect();
    let total: u64 = backends.iter().map(|(_, weight)| weight).sum();
    let count = backends.len() as u64;
    // Each weight times the count: a slot is full where that is the total.
    let mut left: Vec<u64> = backends.iter().map(|(_, weight)| weight * count).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..backends.len()).partition(|index| left[*index] < total);
    let alone = |end: End| SlotValue { own: end, other: end, threshold: u32::MAX };
    let mut slots: Vec<SlotValue> = backends.iter().map(|(end, _)| alone(*end)).collect();
    while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
        let threshold = u128::from(left[poor]) * u128::from(WHOLE) / u128::from(total);
        slots[poor].threshold = u32::try_from(threshold).unwrap_or(u32::MAX);
        slots[poor].other = backends[rich].0;
        left[rich] -= total - left[poor];
        if left[rich] < total {
            large.pop();
            small.push(rich);
        }
    }
    slots
}

/// The Maglev table of backends, which must be in an order that is always the same; empty where there are none.
pub fn maglev(backends: &[End]) -> Vec<SlotValue> {
    if backends.is_empty() {
        return Vec::new();
    }
    let size = if backends.len() > MAGLEV_FEW { MAGLEV_SLOTS_MANY } else { MAGLEV_SLOTS };
    let mut walks: Vec<Walk> = backends.iter().map(|end| Walk::new(end, size)).collect();
    let mut slots: Vec<Option<End>> = vec![None; size];
    let mut taken = 0;
    // Each backend in turn takes the next free slot of its own walk. The size is prime, so that every walk meets every slot.
    'filling: loop {
        for (end, walk) in backends.iter().zip(&mut walks) {
            let Some(slot) = walk.by_ref().take(size).find(|slot| slots[*slot].is_none()) else {
                break 'filling;
            };
            slots[slot] = Some(*end);
            taken += 1;
            if taken == size {
                break 'filling;
            }
        }
    }
    slots.into_iter().flatten().map(|end| SlotValue { own: end, other: end, threshold: u32::MAX }).collect()
}

/// The slots in the order in which one backend prefers them, over and over.
struct Walk {
    next: usize,
    step: usize,
    size: usize,
}

impl Walk {
    fn new(end: &End, size: usize) -> Self {
        let below = |number: u64, bound: usize| {
            usize::try_from(number % bound as u64).expect("a remainder is below its divisor")
        };
        let step = 1 + below(hash(&(end, "step")), size - 1);
        Self { next: below(hash(&(end, "start")), size), step, size }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let slot = self.next;
        self.next = (slot + self.step) % self.size;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use agent_common::balance::TCP;
    use proptest::prelude::*;

    use super::*;

    fn end(index: u32) -> End {
        End::v4(index.to_be(), 80, TCP)
    }

    /// Each backend's share of all draws, exactly: of 2^32 for each slot.
    fn shares(slots: &[SlotValue]) -> HashMap<End, u64> {
        let mut shares = HashMap::new();
        for slot in slots {
            *shares.entry(slot.own).or_default() += u64::from(slot.threshold);
            *shares.entry(slot.other).or_default() += WHOLE - u64::from(slot.threshold);
        }
        shares
    }

    #[test]
    fn nobody_to_choose_from_makes_no_table() {
        assert!(weighted(&[]).is_empty());
        assert!(weighted(&[(end(1), 0)]).is_empty());
        assert!(maglev(&[]).is_empty());
    }

    #[test]
    fn a_share_that_is_spelled_out() {
        let slots = weighted(&[(end(1), 3), (end(2), 1)]);
        let share = shares(&slots)[&end(1)];
        assert!(share.abs_diff(3 * WHOLE / 2) <= 2, "{share}: not three quarters of two slots");
        let even = weighted(&[(end(1), 1), (end(2), 1)]);
        assert!(even.iter().all(|slot| slot.own == slot.other), "{even:?}");
    }

    proptest! {
        #[test]
        fn shares_are_the_weights(weights in prop::collection::vec(0_u32..2_000, 1..60)) {
            let backends: Vec<(End, u32)> = (0..).zip(&weights).map(|(index, weight)| (end(index), *weight)).collect();
            let slots = weighted(&backends);
            let shares = shares(&slots);
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            for (backend, weight) in backends {
                let share = shares.get(&backend).copied().unwrap_or(0);
                let all = u128::from(WHOLE) * slots.len() as u128;
                let expected = if total == 0 { 0 } else { all * u128::from(weight) / u128::from(total) };
                // A slot's threshold is a whole number; a backend is part of every slot at most.
                prop_assert!(u128::from(share).abs_diff(expected) <= 2 * slots.len() as u128 + 2, "{share} of {expected}");
            }
        }

        #[test]
        fn maglev_is_even(count in 1_u32..300) {
            let slots = maglev(&(0..count).map(end).collect::<Vec<_>>());
            let mut counts: HashMap<End, usize> = HashMap::new();
            for slot in &slots {
                *counts.entry(slot.own).or_default() += 1;
            }
            prop_assert_eq!(counts.len(), count as usize);
            let (least, most) = (counts.values().min(), counts.values().max());
            // Turns are taken one by one.
            prop_assert!(most.unwrap_or(&0) - least.unwrap_or(&0) <= 1);
        }

        #[test]
        fn maglev_moves_few_who_need_not_move(count in 2_u32..60, gone in 0_u32..60) {
            let gone = end(gone % count);
            let before: Vec<End> = (0..count).map(end).collect();
            let after: Vec<End> = before.iter().copied().filter(|one| *one != gone).collect();
            let (before, after) = (maglev(&before), maglev(&after));
            let moved = before.iter().zip(&after).filter(|(b, a)| b.own != gone && b.own != a.own).count();
            prop_assert!(moved <= before.len() / 4, "{moved} of {} moved without need", before.len());
        }
    }
}
