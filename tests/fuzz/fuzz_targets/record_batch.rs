//! Drives `trilog_tests::fuzz::record_batch`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trilog_tests::fuzz::record_batch(bytes));
