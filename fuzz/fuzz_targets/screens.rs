#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| memvisor_fuzz::run("screens", data));
