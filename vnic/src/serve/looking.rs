//! A process that only looks at somebody else's device: `vnic attach`, `vnic proxy`.

use std::path::Path;
use std::sync::Arc;

use super::ServeError;
use super::control::{ControlSocket, Source};
use crate::observe::discovery::{self, Publication};
use crate::sandbox::{self, Paths};

/// Its control socket, which those find who do not name one.
#[derive(Debug)]
pub(crate) struct Looking {
    _published: Option<Publication>,
    _control: ControlSocket,
}

impl Looking {
    /// Listens, gives up all that is not needed any more but for `paths`, and answers. `source` hears what was given up.
    ///
    /// # Errors
    /// The path cannot be bound, or is served by someone; the kernel refuses to take what it could.
    pub(crate) fn begin(
        path: &Path,
        what: &str,
        mut paths: Paths,
        source: impl FnOnce(sandbox::Report) -> Arc<dyn Source>,
    ) -> Result<Looking, ServeError> {
        let failed = |source| ServeError::Control { path: path.to_owned(), source };
        let control = ControlSocket::bind(path).map_err(failed)?;
        let published = discovery::publish_or_say(path, what);
        paths.remove(path);
        published.iter().for_each(|published| paths.remove(published.path()));
        let locked_in = sandbox::close(&paths)?;
        control.serve_source(source(locked_in)).map_err(failed)?;
        Ok(Looking { _published: published, _control: control })
    }
}
