//! The pure translation, with requests of all sorts: what must hold whatever is asked for.
//!
//! `properties` has proptest choose generated requests; `fuzz` breaks them, as protobuf and
//! as JSON, for as long as `LONGSHORE_FUZZ_SECONDS` says.

#[allow(dead_code)] // made for the side-by-side test, which uses all of it
#[path = "../differential/containers.rs"]
mod containers;
mod explain;
mod fuzz;
mod invariants;
#[allow(dead_code)]
#[path = "../differential/pods.rs"]
mod pods;
mod properties;
#[path = "../differential/random.rs"]
mod random;
mod translation;
#[allow(dead_code)]
#[path = "../differential/world.rs"]
mod world;
