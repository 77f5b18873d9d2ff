//! The aggregation protocol of unisono: parameters, graph, encoding, both sides' state machines, sans-IO.
