//! What the engine hands on to the engine of the next program, and takes over from the last.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::error;

use super::{Container, Engine};
use crate::error::{Context, Result};
use crate::flow::lock;
use crate::io::gate::Gate;
use crate::io::line::Stream;
use crate::io::log_file::LogFile;
use crate::io::output::Output;
use crate::io::protocol::ContainerIo;
use crate::io::source::{Common, Source};
use crate::io::succession::Bequest;
use crate::sys::inherit;

impl Engine {
    /// Lets the workers end with what they have in hand: nothing moves then, until
    /// [`Engine::go_on`].
    ///
    /// # Errors
    /// Unavailable if one has not ended within `limit`, as when a disk hangs.
    pub(in crate::io) fn halt(&self, limit: Duration) -> Result<()> {
        self.workers.halt(&self.shared, limit)
    }

    /// Goes on after [`Engine::halt`], whether that was done in time or not.
    pub(in crate::io) fn go_on(&self) {
        self.workers.go_on(&self.shared);
    }

    /// Everything that the next program needs to go on; for an engine that is halted.
    ///
    /// # Errors
    /// Those of the system.
    pub(in crate::io) fn bequeath(&self) -> Result<Vec<Bequest>> {
        lock(&self.shared.containers).values().map(|container| container.bequeath()).collect()
    }

    /// Takes back what [`Engine::bequeath`] did.
    pub(in crate::io) fn keep(&self) {
        for container in lock(&self.shared.containers).values() {
            container.output.keep();
            container.sources.iter().for_each(|source| source.keep());
            lock(&container.stdin).as_ref().into_iter().for_each(inherit::keep);
        }
    }

    /// Goes on with what the program before has left. What cannot be taken over is said, and
    /// left to the server, which adds it again.
    pub(in crate::io) fn inherit(&self, bequests: Vec<Bequest>) {
        for bequest in bequests {
            let id = bequest.io.id.clone();
            let taken = self.take_over(bequest).and_then(|container| self.shared.watch(&Arc::new(container)));
            if let Err(error) = taken {
                self.remove(&id);
                error!(container = id, %error, "the output of a container could not be taken over");
            }
        }
    }

    fn take_over(&self, bequest: Bequest) -> Result<Container> {
        let Bequest { io, output: old, streams, stdin } = bequest;
        let take = |fd: Option<i32>, what: &str| {
            fd.map(inherit::take).transpose().context(|| format!("take over the {what}"))
        };
        let path = io.log_path.clone().unwrap_or_default();
        let file = take(old.file, "log file")?.map(|file| LogFile::inherit(file, &path));
        let named = names(&io).zip(streams);
        let open = named.clone().filter(|(_, stream)| stream.fd.is_some()).map(|(name, _)| name).collect();
        let output = Output::new(&io.id, file, io.line_bytes_max, open, self.shared.changed.clone());
        output.resume(&old);
        output.set_rate(io.bytes_per_second_max);
        let output = Arc::new(output);
        let large_pipes = self.shared.large_pipes.clone();
        let common = Common { output: output.clone(), gate: Arc::new(Gate::new()), large_pipes };
        let sources = named.map(|(name, stream)| {
            let mark = self.shared.next_mark.fetch_add(1, Ordering::Relaxed);
            Source::inherit((mark, name), stream, &common).map(Arc::new)
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let stdin = take(stdin, "standard input")?.into();
        Ok(Container { io, output, sources, stdin })
    }
}

impl Container {
    fn bequeath(&self) -> Result<Bequest> {
        let stdin = lock(&self.stdin).as_ref().map(inherit::pass_on).transpose();
        Ok(Bequest {
            io: ContainerIo { bytes_per_second_max: self.output.rate(), ..self.io.clone() },
            output: self.output.bequeath()?,
            streams: self.sources.iter().map(|source| source.bequeath()).collect::<Result<_>>()?,
            stdin: stdin.context(|| "pass on a standard input")?,
        })
    }
}

/// The streams that a container has a source of, in the order of its sources.
fn names(io: &ContainerIo) -> impl Iterator<Item = Stream> + Clone {
    let names = [(Stream::Stdout, io.stdout.is_some()), (Stream::Stderr, io.stderr.is_some())];
    names.into_iter().filter(|(_, has)| *has).map(|(name, _)| name)
}
