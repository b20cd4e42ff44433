//! Drives `trilog_tests::fuzz::peer_frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trilog_tests::fuzz::peer_frames(bytes));
