//! The device SDK of unisono: transport, retries, durable state, the Trainer trait.
