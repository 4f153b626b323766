//! Names that are the same after a restart and different on every machine.

use log::warn;
use nvmf_proto::wire::nqn::Nqn;
use std::fs;
use std::path::Path;
use uuid::{Uuid, uuid};

/// The name space of our name-based UUIDs (RFC 9562 §5.5).
const NAMESPACE: Uuid = uuid!("ff920fba-db6c-4a30-a460-571bee099c72");

/// What this machine's identifiers are derived from. The machine's own id is not recognisable in
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine(Uuid);

/// The identifiers of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NsIds {
    pub(crate) uuid: [u8; 16],
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
}

impl Machine {
    /// The machine whose file tree begins at `root`; warns if it has no reliable identity.
    pub(crate) fn of(root: &Path) -> Self {
        let read = |file: &str| {
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            text.trim().to_ascii_lowercase()
        };
        // The product UUID of cheap firmware is none; and "uninitialized" is a machine id of images.
        let sources = [
            "etc/machine-id",
            "var/lib/dbus/machine-id",
            "sys/class/dmi/id/product_uuid",
        ];
        let id = sources.iter().find_map(|file| {
            Uuid::try_parse(&read(file))
                .ok()
                .filter(|id| !id.is_nil() && !id.is_max())
        });
        if let Some(id) = id {
            return Self(Uuid::new_v5(&NAMESPACE, id.as_bytes()));
        }
        let host = read("proc/sys/kernel/hostname");
        warn!(
            "no /etc/machine-id and no product UUID: NQN and namespace identifiers are derived from \
             the host name {host:?} and clash with those of another machine of that name"
        );
        Self(Uuid::new_v5(&NAMESPACE, host.as_bytes()))
    }

    /// The subsystem NQN for when none is given.
    pub(crate) fn nqn(self) -> String {
        Nqn::from_uuid(Uuid::new_v5(&self.0, b"subsystem").as_bytes())
            .as_str()
            .to_owned()
    }

    /// The serial number of a subsystem: 20 characters.
    pub(crate) fn serial(self, nqn: &str) -> String {
        let id = self.derive("serial", nqn, b"").simple().to_string();
        id.chars().take(20).collect()
    }

    /// The identifiers of the namespace of subsystem `nqn` that is stored in `place`.
    pub(crate) fn namespace(self, nqn: &str, place: &[u8]) -> NsIds {
        let uuid = self.derive("namespace", nqn, place).into_bytes();
        // An NGUID ends in an EUI-64; ours are locally administered unicast ones, as they carry
        // no organisation's identifier (IEEE, Guidelines for Use of EUI).
        let mut nguid = uuid;
        nguid[8] = nguid[8] & !0x01 | 0x02;
        let mut eui64 = [0; 8];
        eui64.copy_from_slice(&nguid[8..]);
        NsIds { uuid, nguid, eui64 }
    }

    fn derive(self, kind: &str, nqn: &str, rest: &[u8]) -> Uuid {
        // No NQN holds a NUL, so that no two names are the same bytes.
        let name = [kind.as_bytes(), nqn.as_bytes(), rest].join(&0);
        Uuid::new_v5(&self.0, &name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tempfile::TempDir;

    fn machine(files: &[(&str, &str)]) -> Machine {
        let root = TempDir::new().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Machine::of(root.path())
    }

    const ID: (&str, &str) = ("etc/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n");
    const PRODUCT: (&str, &str) = (
        "sys/class/dmi/id/product_uuid",
        "4C4C4544-0042-3510-8052-B4C04F4E3732\n",
    );
    const HOST: (&str, &str) = ("proc/sys/kernel/hostname", "box\n");

    #[test]
    fn the_best_source_is_taken() {
        assert_eq!(machine(&[ID, PRODUCT, HOST]), machine(&[ID]));
        assert_eq!(
            machine(&[("etc/machine-id", "uninitialized"), PRODUCT]),
            machine(&[PRODUCT])
        );
        let none = (
            "sys/class/dmi/id/product_uuid",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        );
        assert_eq!(machine(&[none, HOST]), machine(&[HOST]));
        let all = [
            machine(&[ID]),
            machine(&[PRODUCT]),
            machine(&[HOST]),
            machine(&[]),
        ];
        assert_eq!(
            all.map(Machine::nqn)
                .into_iter()
                .collect::<HashSet<_>>()
                .len(),
            4
        );
    }

    /// Changing these changes the disks that hosts know: not to be done lightly.
    #[test]
    fn identifiers_stay_what_they_are() {
        let machine = machine(&[ID]);
        assert_eq!(
            machine.nqn(),
            "nqn.2014-08.org.nvmexpress:uuid:0d140e14-fe6f-51f0-8242-5428d934c592"
        );
        assert_eq!(machine.serial("nqn.a"), "f57be73a42f2566e83ac");
        let ids = machine.namespace("nqn.a", b"ramdisk:1");
        assert_eq!(
            Uuid::from_bytes(ids.uuid).to_string(),
            "bca79df7-1ad0-554c-911e-78e9e19a32be"
        );
    }

    #[test]
    fn identifiers_are_well_formed_and_distinct() {
        let machine = machine(&[ID]);
        Nqn::new(&machine.nqn()).unwrap();
        assert_eq!(machine.serial("nqn.a").len(), 20);
        assert_ne!(machine.serial("nqn.a"), machine.serial("nqn.b"));
        let places = [
            ("nqn.a", "ramdisk:1"),
            ("nqn.a", "ramdisk:2"),
            ("nqn.b", "ramdisk:1"),
        ];
        let ids = places.map(|(nqn, place)| machine.namespace(nqn, place.as_bytes()));
        assert_eq!(
            ids.iter().map(|ids| ids.uuid).collect::<HashSet<_>>().len(),
            3
        );
        assert_eq!(
            ids.iter()
                .map(|ids| ids.eui64)
                .collect::<HashSet<_>>()
                .len(),
            3
        );
        for ids in ids {
            assert_eq!(Uuid::from_bytes(ids.uuid).get_version_num(), 5);
            assert_eq!(ids.nguid[8..], ids.eui64);
            assert_eq!(ids.eui64[0] & 3, 2);
        }
    }
}
