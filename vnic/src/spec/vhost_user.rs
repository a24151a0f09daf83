//! vhost-user constants and layouts.
