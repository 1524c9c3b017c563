//! Levels whose server was gone for a while.

use super::{Gate, JudgedLevel, Verdict};
use crate::figures::Outage;

/// Levels with an outage that is not explained yet. Each should be measured again; otherwise the result is provisional.
///
/// If a level lost its connections while a higher one kept them, its load was not the cause. If no higher level shows
/// that, the server may have crashed under the load of the level itself. So the lowest such level counts as failed only
/// if it fails twice while others are served, and as served only if it is served twice in a row. Those above do not
/// count.
pub fn open_outages(levels: &[JudgedLevel]) -> impl Iterator<Item = &JudgedLevel> {
    let served = |level: &JudgedLevel| level.verdict != Verdict::NotUsed && level.gate != Some(Gate::Errors);
    let highest_served = levels.iter().rposition(served);
    let lowest_beyond = highest_served.map_or(0, |highest| highest + 1);
    let mut outages = levels.iter().filter_map(|level| level.summary.outage);
    let is_gone = outages.any(|outage| outage.is_set_aside() && outage.since < 1);
    let is_open = move |at: usize, outage: Outage| match (outage.is_set_aside(), highest_served > Some(at)) {
        (true, true) => outage.since < 1,
        (true, false) => outage.since < 2,
        (false, true) => true,
        (false, false) => at == lowest_beyond && (outage.of < 2 || is_gone),
    };
    let with_outage = levels.iter().enumerate().filter_map(|(at, level)| Some((at, level, level.summary.outage?)));
    with_outage.filter(move |&(at, _, outage)| is_open(at, outage)).map(|(_, level, _)| level)
}
