//! Can the guest move to another host while it runs? Said before it is tried: an answer of the front-end's would come in the middle.

use crate::backend::Shared;
use crate::backend::shared::View;
use crate::observe::protocol::MigrationStatus;
use crate::spec::Feature;
use crate::spec::vhost_user::ProtocolFeature;

/// What is known of one device.
pub(super) fn status(shared: &Shared, view: &View) -> MigrationStatus {
    MigrationStatus {
        cannot: cannot(shared, view),
        stays: shared.about.stays.map(str::to_owned),
        logging: view.log.is_some(),
        pages_marked: view.log.as_ref().map_or(0, |log| log.marked()),
    }
}

/// Why it cannot.
fn cannot(shared: &Shared, view: &View) -> Option<String> {
    let about = &shared.about;
    if about.withheld.has(Feature::LogAll) {
        return Some("log_all is withheld (--withhold): no front-end moves a guest without it".to_owned());
    }
    if !about.offered.has(Feature::LogAll) {
        return Some(match about.device {
            "blk" => "its image is locked for this process alone; `readonly` moves".to_owned(),
            device => format!("a device of the kind {device} does not say which memory it writes"),
        });
    }
    let taken = view.protocol_features.iter().any(|name| name == ProtocolFeature::LogShmfd.name());
    (view.connected && !taken)
        .then(|| "the front-end has not taken LOG_SHMFD: it would not see what is written".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::About;
    use crate::spec::Features;

    fn cannot_of(device: &'static str, offered: Features, withheld: Features, protocol: &[&str]) -> Option<String> {
        of(About { device, offered, withheld, ..About::default() }, protocol).cannot
    }

    fn of(about: About, protocol: &[&str]) -> MigrationStatus {
        let shared = Shared::new(about, [], Vec::new());
        let protocol_features = protocol.iter().map(|name| (*name).to_owned()).collect();
        status(&shared, &View { connected: true, protocol_features, ..View::default() })
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let log = Features::of(&[Feature::LogAll]);
        assert_eq!(cannot_of("net", log, Features::NONE, &["LOG_SHMFD"]), None);
        for (device, offered, withheld, protocol, named) in [
            ("net", Features::NONE, log, "LOG_SHMFD", "log_all"),
            ("net", log, Features::NONE, "MQ", "LOG_SHMFD"),
            ("blk", Features::NONE, Features::NONE, "LOG_SHMFD", "readonly"),
            ("own", Features::NONE, Features::NONE, "LOG_SHMFD", "kind own"),
        ] {
            let why = cannot_of(device, offered, withheld, &[protocol]).unwrap();
            assert!(why.contains(named), "{why}");
        }
    }

    #[test]
    fn what_ends_with_the_link_is_said() {
        let stays = |stays| of(About { stays, ..About::default() }, &[]).stays;
        assert_eq!(stays(Some("connections end")).as_deref(), Some("connections end"));
        assert_eq!(stays(None), None);
    }
}
