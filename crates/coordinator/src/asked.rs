//! The devices that wait for a round, and which round they have reached: what shows that this coordinator's state went back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::gauge;

#[derive(Default)]
struct Table {
    /// How many calls ask for a round after each number.
    waiting: BTreeMap<u64, usize>,
    /// Number of the round at hand, or of the last one.
    reached: u64,
    /// Number of the last round whose sum was learned.
    summed: u64,
}

/// Calls that wait for a round.
#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Table>>);

/// One of them; forgotten when dropped.
pub(crate) struct Place {
    asked: Asked,
    after_round: u64,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// In all.
    pub waiting: usize,
    /// That ask for a round after one that this coordinator has not reached.
    pub ahead: usize,
    /// The highest round that one of them names; it may be a lie.
    pub highest: u64,
}

impl Asked {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that asks for a round after `after_round`.
    pub fn wait(&self, after_round: u64) -> Place {
        *self.table().waiting.entry(after_round).or_default() += 1;
        Place { asked: self.clone(), after_round }
    }

    /// Says which round is at hand, or was the last one.
    pub fn reach(&self, number: u64) {
        self.table().reached = number;
    }

    /// Says which round was the last one whose sum was learned; 0: none.
    pub fn summed(&self, number: u64) {
        self.table().summed = number;
    }

    /// Number of the round at hand, or of the last one.
    pub fn reached(&self) -> u64 {
        self.table().reached
    }

    /// How many there are; the gauges are set to it.
    pub fn count(&self) -> Count {
        let table = self.table();
        let count = Count {
            waiting: table.waiting.values().sum(),
            ahead: table.ahead().map(|(_, calls)| calls).sum(),
            highest: table.waiting.last_key_value().map_or(0, |(&after, _)| after),
        };
        gauge!("unisono_devices_waiting").set(count.waiting as f64);
        gauge!("unisono_devices_ahead").set(count.ahead as f64);
        count
    }

    /// The number from which on `needed` of the devices that are ahead can take part, at most `most` above the last sum; `None` if fewer
    /// are ahead. The highest number that is named does not decide: it may be a lie. Nor do many lies, however often they are told: as
    /// long as there is no sum, the number stays where devices take it.
    pub fn jump(&self, needed: usize, most: u64) -> Option<u64> {
        let table = self.table();
        let mut reached_by = 0;
        let (after, _) = table.ahead().find(|(_, calls)| {
            reached_by += calls;
            reached_by >= needed.max(1)
        })?;
        Some(after.saturating_add(1).min(table.summed.saturating_add(most)))
    }
}

impl Table {
    /// The numbers above the one that is reached, ascending, with the calls that name them.
    fn ahead(&self) -> impl Iterator<Item = (u64, usize)> {
        let above = (std::ops::Bound::Excluded(self.reached), std::ops::Bound::Unbounded);
        self.waiting.range(above).map(|(&after, &calls)| (after, calls))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.asked.table();
        if let Some(calls) = table.waiting.get_mut(&self.after_round) {
            *calls -= 1;
            if *calls == 0 {
                table.waiting.remove(&self.after_round);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_goes_where_enough_devices_are_and_a_liar_does_not_move_it() {
        let asked = Asked::default();
        asked.reach(5);
        asked.summed(4);
        assert_eq!(asked.jump(1, 100), None);
        let mut places: Vec<Place> = [3, 5, 8, 9, 12].map(|after| asked.wait(after)).into();
        assert_eq!(asked.count(), Count { waiting: 5, ahead: 3, highest: 12 });
        assert_eq!((asked.jump(1, 100), asked.jump(2, 100), asked.jump(3, 100)), (Some(9), Some(10), Some(13)));
        assert_eq!((asked.jump(4, 100), asked.jump(3, 5)), (None, Some(9)));
        places.push(asked.wait(u64::MAX));
        assert_eq!((asked.jump(3, 100), asked.jump(4, 100)), (Some(13), Some(104)));
        // Told once more after that jump, it is the same number.
        asked.reach(104);
        places.extend([105, 106, 107].map(|after| asked.wait(after)));
        assert_eq!(asked.jump(4, 100), Some(104));
        places.clear();
        assert_eq!(asked.count(), Count::default());
    }
}
