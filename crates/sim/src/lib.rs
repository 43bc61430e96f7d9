//! Deterministic worlds
