#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| unisono_fuzz::decoders::run(data));
