//! What the device offers, which feature depends on which, and what `--withhold` may take away.
//!
//! VIRTIO 1.3, 5.1.3.1 Feature bit requirements; 2.2.3 Legacy Interface: A Note on Feature Bits.

use crate::spec::{Feature, Features};

/// Everything the device can do. What QEMU adds on its own (MAC, STATUS, control queue) is not ours to offer. `ring_reset`
/// is not among it, though a vring can be stopped and started again on its own: QEMU (seen: 10.0) tells a vhost-user
/// device nothing of a reset, and a guest that used it would have lost the queue.
pub const OFFERED: Features = Features::of(&[
    Feature::Csum,
    Feature::GuestCsum,
    Feature::GuestTso4,
    Feature::GuestTso6,
    Feature::GuestEcn,
    Feature::HostTso4,
    Feature::HostTso6,
    Feature::HostEcn,
    Feature::MrgRxbuf,
    Feature::GuestAnnounce,
    Feature::Mq,
    Feature::LogAll,
    Feature::IndirectDesc,
    Feature::EventIdx,
    Feature::RingPacked,
    Feature::InOrder,
    Feature::AccessPlatform,
    Feature::ProtocolFeatures,
    Feature::Version1,
    Feature::GuestUso4,
    Feature::GuestUso6,
    Feature::HostUso,
]);

/// `feature` makes sense only with at least one of `any_of`.
struct Needs {
    feature: Feature,
    any_of: &'static [Feature],
}

const fn needs(feature: Feature, any_of: &'static [Feature]) -> Needs {
    Needs { feature, any_of }
}

/// In an order in which one pass finds everything: what is needed stands above what needs it.
const NEEDS: &[Needs] = &[
    needs(Feature::GuestTso4, &[Feature::GuestCsum]),
    needs(Feature::GuestTso6, &[Feature::GuestCsum]),
    needs(Feature::GuestEcn, &[Feature::GuestTso4, Feature::GuestTso6]),
    needs(Feature::GuestUfo, &[Feature::GuestCsum]),
    needs(Feature::GuestUso4, &[Feature::GuestCsum]),
    needs(Feature::GuestUso6, &[Feature::GuestCsum]),
    needs(Feature::HostTso4, &[Feature::Csum]),
    needs(Feature::HostTso6, &[Feature::Csum]),
    needs(Feature::HostEcn, &[Feature::HostTso4, Feature::HostTso6]),
    needs(Feature::HostUfo, &[Feature::Csum]),
    needs(Feature::HostUso, &[Feature::Csum]),
    needs(Feature::AccessPlatform, &[Feature::Version1]),
    needs(Feature::RingPacked, &[Feature::Version1]),
    needs(Feature::InOrder, &[Feature::Version1]),
    needs(Feature::OrderPlatform, &[Feature::Version1]),
    needs(Feature::NotificationData, &[Feature::Version1]),
    needs(Feature::RingReset, &[Feature::Version1]),
    needs(Feature::HashReport, &[Feature::Version1]),
];

/// `set` without the features whose requirements are not in it.
#[must_use]
pub fn with_requirements_met(set: Features) -> Features {
    NEEDS.iter().fold(
        set,
        |set, Needs { feature, any_of }| {
            if any_of.iter().any(|needed| set.has(*needed)) { set } else { set.without(*feature) }
        },
    )
}

/// What a device of this many queue pairs can offer on a link that cannot do what is in `lacking`.
#[must_use]
pub fn possible(queue_pairs: u16, lacking: Features) -> Features {
    let able = OFFERED.minus(lacking);
    with_requirements_met(if queue_pairs > 1 { able } else { able.without(Feature::Mq) })
}

/// What is left to offer of `possible` when `withheld` are not: each takes what depends on it with it.
#[must_use]
pub fn offered_without(possible: Features, withheld: Features) -> Features {
    with_requirements_met(possible.minus(withheld))
}

/// The names that `--withhold` takes: all that is offered.
pub fn withholdable() -> impl Iterator<Item = Feature> {
    Feature::ALL.iter().copied().filter(|feature| OFFERED.has(*feature))
}

/// A feature that cannot be withheld.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WithholdError {
    /// No feature has this name.
    #[error("there is no feature `{name}` to withhold; this device offers {}", offered_names())]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// The spec knows it, but this device does not offer it anyway.
    #[error("`{feature}` is not offered in the first place; this device offers {}", offered_names())]
    NotOffered {
        /// The feature.
        feature: Feature,
    },
}

fn offered_names() -> String {
    withholdable().map(Feature::name).collect::<Vec<_>>().join(", ")
}

/// The features named in a comma-separated list, as `--withhold` takes it.
///
/// # Errors
/// A name is no feature's, or the feature's that is not offered.
pub fn parse_withheld(list: &str) -> Result<Features, WithholdError> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).try_fold(Features::NONE, |set, name| {
        let feature: Feature = name.parse().map_err(|_| WithholdError::Unknown { name: name.to_owned() })?;
        if OFFERED.has(feature) { Ok(set.with(feature)) } else { Err(WithholdError::NotOffered { feature }) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn withholding_csum_takes_transmit_segmentation_with_it() {
        let left = offered_without(OFFERED, parse_withheld("csum").unwrap());
        let gone = OFFERED.minus(left);
        assert_eq!(
            gone,
            Features::of(&[Feature::Csum, Feature::HostTso4, Feature::HostTso6, Feature::HostEcn, Feature::HostUso])
        );
    }

    #[test]
    fn withholding_guest_csum_takes_receive_segmentation_with_it() {
        let gone = OFFERED.minus(offered_without(OFFERED, parse_withheld("guest_csum").unwrap()));
        let segmented =
            [Feature::GuestTso4, Feature::GuestTso6, Feature::GuestEcn, Feature::GuestUso4, Feature::GuestUso6];
        assert_eq!(gone, Features::of(&segmented).with(Feature::GuestCsum));
    }

    #[test]
    fn ecn_stays_while_one_kind_of_segmentation_does() {
        let left = offered_without(OFFERED, parse_withheld("host_tso4").unwrap());
        assert!(left.has(Feature::HostEcn));
        assert!(!offered_without(OFFERED, parse_withheld("host_tso4, host_tso6").unwrap()).has(Feature::HostEcn));
    }

    #[test]
    fn each_offered_feature_can_be_withheld_alone() {
        for feature in withholdable() {
            let left = offered_without(OFFERED, parse_withheld(feature.name()).unwrap());
            assert!(!left.has(feature), "{feature}");
            assert!(left.is_subset_of(OFFERED));
        }
        assert_eq!(withholdable().count(), OFFERED.names().len());
    }

    #[test]
    fn what_is_offered_meets_its_own_requirements() {
        assert_eq!(with_requirements_met(OFFERED), OFFERED);
        assert_eq!(offered_without(OFFERED, Features::NONE), OFFERED);
    }

    #[test]
    fn several_pairs_are_offered_only_where_there_are_some_and_no_link_offers_what_it_lacks() {
        assert_eq!(possible(1, Features::NONE), OFFERED.without(Feature::Mq));
        assert_eq!(possible(2, Features::NONE), OFFERED);
        let left = possible(2, Features::of(&[Feature::GuestCsum]));
        assert!(!left.has(Feature::GuestTso4) && !left.has(Feature::GuestUso6) && left.has(Feature::HostUso));
    }

    #[test]
    fn a_wrong_name_says_which_names_there_are() {
        let error = parse_withheld("csum,tso").unwrap_err();
        assert_eq!(error, WithholdError::Unknown { name: "tso".into() });
        assert!(error.to_string().contains("host_tso4, host_tso6"), "{error}");
        assert_eq!(parse_withheld("rss"), Err(WithholdError::NotOffered { feature: Feature::Rss }));
        assert_eq!(parse_withheld(""), Ok(Features::NONE));
    }
}
