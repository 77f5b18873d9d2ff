//! Secure aggregation for federated learning.
