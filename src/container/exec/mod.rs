//! ExecSync and Exec: further processes in a container.

mod session;
mod sync;
