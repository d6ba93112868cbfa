//! longshore: a CRI server for Kubernetes nodes on an existing containerd.
//!
//! The kubelet manages pods over the CRI; longshore turns each call into calls of a
//! containerd that runs already. The crate's layers, from the edge down; a module uses
//! only what is below it:
//!
//! | layer | modules |
//! |---|---|
//! | command line and composition | [`cli`], [`app`] |
//! | a node's traffic | [`record`]: kept in a file, played again |
//! | what does not fit together, what would be done | [`check`], [`explain`] |
//! | edge | [`cri`]: gRPC for the kubelet; [`admin`]: what goes on, for who debugs; [`stream`]: exec, attach, port-forward |
//! | domain, in this order | [`stats`], [`pod`], [`container`], [`leftovers`] (what belongs to no pod), [`image`]: one verb, one file |
//! | records | [`state`]: pods, containers, their tables and status files |
//! | additions to a spec | [`cdi`]: devices of vendors |
//! | capabilities | [`spec`] (CRI → OCI, pure), [`network`] (CNI), [`io`] (output, logs), [`events`] (who is told what) |
//! | mechanics | [`containerd`]: the only module that knows containerd's API |
//! | foundation | [`sys`], [`telemetry`], [`trace`] (what every call caused), [`flow`], [`config`], [`points`] (where tests intervene), [`ids`], [`glob`], [`error`], [`proto`] |
//!
//! Start at [`pod`]'s `run.rs` for how a pod is made, at `recover.rs` for what happens on
//! a restart, at [`flow`] for what happens when a client gives up half-way.

pub mod admin;
pub mod app;
pub mod cdi;
pub mod check;
pub mod cli;
pub mod config;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod error;
pub mod events;
pub mod explain;
pub mod flow;
pub mod glob;
pub mod httpd;
pub mod ids;
pub mod image;
pub mod io;
pub mod leftovers;
pub mod network;
pub mod page;
pub mod pod;
pub mod points;
pub mod proto;
pub mod record;
pub mod spec;
pub mod state;
pub mod stats;
pub mod stream;
pub mod sys;
pub mod telemetry;
pub mod trace;
