//! Numbers with the specification's names, and sets of features: of the device and of the vhost-user protocol alike.

/// An enum of numbers that have names.
macro_rules! codes {
    ($(#[$outer:meta])* $type:ident; $($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $type {
            $($(#[$doc])* $variant = $number,)*
        }

        impl $type {
            /// Every one that has a name here, by rising number.
            pub const ALL: &'static [$type] = &[$($type::$variant,)*];

            /// The specification's name, without prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }

            /// The one with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some($type::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

/// A set of features as the wire has it, and a feature's mask in it. A feature's number is its bit's position.
macro_rules! feature_set {
    ($(#[$outer:meta])* $set:ident of $feature:ident) => {
        impl $feature {
            /// The mask with this feature's bit alone.
            #[must_use]
            pub const fn mask(self) -> u64 {
                1 << (self as u32)
            }
        }

        $(#[$outer])*
        pub struct $set(pub u64);

        impl $set {
            /// None at all.
            pub const NONE: $set = $set(0);

            /// The set of these features.
            #[must_use]
            pub const fn of(list: &[$feature]) -> Self {
                let mut bits = 0;
                let mut i = 0;
                while i < list.len() {
                    bits |= list[i].mask();
                    i += 1;
                }
                $set(bits)
            }

            /// Is `feature` in the set?
            #[must_use]
            pub const fn has(self, feature: $feature) -> bool {
                self.0 & feature.mask() != 0
            }

            /// The set with `feature`.
            #[must_use]
            pub const fn with(self, feature: $feature) -> Self {
                $set(self.0 | feature.mask())
            }

            /// The set without `feature`.
            #[must_use]
            pub const fn without(self, feature: $feature) -> Self {
                $set(self.0 & !feature.mask())
            }

            /// What is in this set and not in `other`.
            #[must_use]
            pub const fn minus(self, other: Self) -> Self {
                $set(self.0 & !other.0)
            }

            /// The names of the set, by rising bit number; a bit without a name is `bit N`.
            #[must_use]
            pub fn names(self) -> Vec<String> {
                (0..64)
                    .filter(|bit| self.0 >> bit & 1 == 1)
                    .map(|bit| {
                        $feature::from_number(bit)
                            .map_or_else(|| format!("bit {bit}"), |feature| feature.name().to_owned())
                    })
                    .collect()
            }
        }

        impl std::fmt::Display for $set {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.names().join(" "))
            }
        }
    };
}

pub(super) use {codes, feature_set};
