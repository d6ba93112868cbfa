//! longshore: a CRI server for Kubernetes nodes on an existing containerd.

pub mod config;
pub mod container;
pub mod containerd;
pub mod error;
pub mod flow;
pub mod ids;
pub mod image;
pub mod io;
pub mod network;
pub mod pod;
pub mod proto;
pub mod spec;
pub mod state;
pub mod sys;
pub mod telemetry;
