//! The image module against real parts: a containerd and a registry of each test's own.
//!
//! containerd and ctr come from the folder in `LONGSHORE_TEST_CONTAINERD`, else from the
//! PATH; the registry is docker-registry. Without them, or without root, the tests say so
//! and pass.

mod alone;
mod bench;
mod certificate;
mod credentials;
mod disk;
mod extract;
mod failures;
mod faults;
mod fixture;
mod http;
mod imported;
mod local;
mod mirrors;
mod node;
mod pause;
mod proxied;
mod proxy;
mod pull;
mod registry;
mod resume;
mod server;
mod sharing;
mod tls;
mod token_pulls;
mod tokens;
mod transfer;
