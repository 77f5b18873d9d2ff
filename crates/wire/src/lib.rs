//! The gRPC services of unisono.
