//! A CRI server.

fn main() {}
