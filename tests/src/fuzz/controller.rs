//! Commands of the controller: whatever is committed, every replica has to take it the same way.

use trilog_model::Timestamp;
use trilog_raft::controller::{ControllerState, RestoreError, decode_outcome};

/// The most of one input that is applied.
const MAX_COMMANDS: usize = 64;

/// Applies `bytes`, a series of commands each with its length in two bytes before it.
pub fn controller_commands(bytes: &[u8]) {
    let mut state = ControllerState::new();
    let mut rest = bytes;
    for second in 1..=MAX_COMMANDS {
        let Some((len, after)) = rest.split_first_chunk::<2>() else {
            break;
        };
        let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
        let (command, after) = after.split_at(len);
        rest = after;
        apply(&mut state, command, second);
    }
    reload(&state);
    // Not a snapshot, most likely: then nothing may change.
    let before = state.hash();
    if state.restore(bytes).is_err() {
        assert_eq!(state.hash(), before);
    }
}

fn apply(state: &mut ControllerState, command: &[u8], second: usize) {
    let before = state.hash();
    let time = Timestamp(u64::try_from(second).unwrap_or(0) * 1_000_000_000);
    let answer = state.apply(command, time);
    if decode_outcome(&answer).is_err() {
        assert_eq!(state.hash(), before, "a refusal changed something");
    }
}

/// A snapshot gives the same state back.
fn reload(state: &ControllerState) {
    let mut again = ControllerState::new();
    let restored = again.restore(&state.snapshot());
    if matches!(restored, Err(RestoreError::Level { .. })) {
        // Every node registered as newer, and the level was raised: this build must not go on.
        return;
    }
    assert!(restored.is_ok(), "{restored:?}");
    assert_eq!(again.hash(), state.hash());
}
