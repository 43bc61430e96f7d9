//! The bytes on disk: these tests fail when any encoding moves. Data written by older releases has to stay readable,
//! so do not adapt them; add a new format next to the old one.

use bytes::Bytes;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    Batch, Corrupt, Desc, Hint, Key, KeyBuf, Pos, Raw, Table, Topic, Value, ValueBuf, journal,
    key::KeyReader,
    limits,
    table::{Hint::*, chunk_key},
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key<K: Key>(key: K::Ref<'_>) -> String {
    let mut buf = KeyBuf::default();
    K::encode(key, &mut buf);
    hex(&buf.bytes)
}

fn value(value: &impl Value) -> String {
    let mut buf = ValueBuf::default();
    value.encode(&mut buf);
    hex(&buf.bytes)
}

#[test]
fn keys_on_disk() {
    assert_eq!(key::<u8>(7), "07");
    assert_eq!(key::<u16>(7), "0007");
    assert_eq!(key::<u32>(7), "00000007");
    assert_eq!(key::<u64>(7), "0000000000000007");
    assert_eq!(key::<Pos>(Pos(258)), "0000000000000102");
    assert_eq!(key::<Desc<u64>>(Desc(7)), "fffffffffffffff8");
    assert_eq!(key::<Desc<Pos>>(Desc(Pos(7))), "fffffffffffffff8");
    assert_eq!(key::<bool>(true), "01");
    assert_eq!(key::<()>(()), "");
    assert_eq!(key::<String>("a\0b\u{1}c\u{2}é"), "61010162010263".to_owned() + "02" + "c3a9" + "00");
    assert_eq!(key::<Bytes>(&[0, 1, 0xff]), "0001ff");
    assert_eq!(key::<[u8; 3]>(&[1, 2, 3]), "010203");
    assert_eq!(key::<(u64, String, Bytes)>((1, "x", b"yz")), "0000000000000001780079".to_owned() + "7a");
    assert_eq!(hex(&chunk_key(&[5, 1, 2], 3)), "ff0501020003");
    static TABLE: Table<(String, Pos), ()> = Table::new(9, "t", Small, None, "");
    assert_eq!(hex(&TABLE.key(("@a:b", Pos(1))).bytes), "0940613a62000000000000000001");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ProfileV1 {
    name: String,
}
crate::postcard_value!(ProfileV1, 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Profile {
    name: Option<String>,
    age: u32,
}
crate::postcard_value!(Profile, 2, from ProfileV1);

impl From<ProfileV1> for Profile {
    fn from(old: ProfileV1) -> Self {
        Self { name: Some(old.name), age: 0 }
    }
}

#[test]
fn values_on_disk() {
    assert_eq!(value(&7u64), "0000000000000007");
    assert_eq!(value(&Pos(7)), "0000000000000007");
    assert_eq!(value(&(1, 2)), "00000000000000010000000000000002");
    assert_eq!(value(&"hé".to_owned()), "68c3a9");
    assert_eq!(value(&Bytes::from_static(b"\x00\x01")), "0001");
    assert_eq!(value(&()), "");
    assert_eq!(value(&Profile { name: Some("al".to_owned()), age: 300 }), "020102616cac02");
    let mut fields = ValueBuf::default();
    fields.u8(1);
    fields.u16(2);
    fields.u32(3);
    fields.str("x");
    fields.bytes(b"yz");
    fields.raw(b"!");
    assert_eq!(hex(&fields.bytes), "01000200000003000000017800000002797a21");
}

#[test]
fn rows_of_the_store_itself_on_disk() {
    let entry = journal::entry_row(Pos(5), &[Topic::number(1, 7), Topic::new(2, "@a")]);
    assert_eq!((entry.hint, hex(&entry.key).as_str()), (Hint::Log, "f10000000000000005"));
    assert_eq!(hex(&entry.value.unwrap()), "01010800000000000000070202".to_owned() + "4061");
    let tip = journal::tip_row(Pos(5));
    assert_eq!((tip.hint, hex(&tip.key).as_str()), (Hint::Small, "f0"));
    assert_eq!(hex(&tip.value.unwrap()), "0000000000000005");
    let mut batch = Batch::new();
    journal::advance(&mut batch, "push", Pos(5));
    let (cursor, write) = batch.writes.first_key_value().unwrap();
    assert_eq!(
        (hex(cursor).as_str(), hex(write.value.as_ref().unwrap()).as_str()),
        ("f27075736800", "0000000000000005")
    );
    assert_eq!(Hint::ALL.map(|hint| hint as u8), [0, 1, 2, 3, 4]);
    assert_eq!(Hint::ALL, [Small, Lookup, Bulk, Log, Cold]);
}

#[test]
fn old_values_stay_readable_and_later_ones_are_refused() {
    let mut old = ValueBuf::default();
    ProfileV1 { name: "al".to_owned() }.encode(&mut old);
    let migrated = Profile::decode(Raw::Borrowed(&old.bytes)).unwrap();
    assert_eq!(migrated, Profile { name: Some("al".to_owned()), age: 0 });
    assert!(Profile::decode(Raw::Borrowed(&[3, 1, 2])).is_err());
    assert!(ProfileV1::decode(Raw::Borrowed(&[2, 1, 2])).is_err());
    assert!(Profile::decode(Raw::Borrowed(&[])).is_err());
}

#[test]
fn a_value_that_cannot_be_encoded_fails_the_commit() {
    struct Endless;
    impl Serialize for Endless {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeSeq;
            serializer.serialize_seq(None)?.end()
        }
    }
    impl Value for Endless {
        fn encode(&self, out: &mut ValueBuf) {
            out.postcard(self);
        }
        fn decode(_: Raw<'_>) -> Result<Self, Corrupt> {
            Ok(Self)
        }
    }
    static TABLE: Table<u64, Endless> = Table::new(9, "endless", Small, None, "");
    let mut batch = Batch::new();
    batch.put(&TABLE, 1, &Endless);
    assert!(batch.validate().is_err());
}

#[test]
fn wrong_keys_and_values_are_corrupt_not_panics() {
    fn corrupt<K: Key>(bytes: &[u8]) {
        assert!(K::decode(&mut KeyReader(bytes)).is_err());
    }
    corrupt::<u64>(&[1, 2]);
    corrupt::<bool>(&[2]);
    corrupt::<String>(b"abc");
    corrupt::<String>(b"a\x01\x00");
    corrupt::<String>(b"\xff\x00");
    corrupt::<[u8; 4]>(b"abc");
    static TABLE: Table<u64, u64> = Table::new(9, "numbers", Small, None, "");
    assert!(TABLE.decode_key(&[9, 0, 0, 0, 0, 0, 0, 0, 1, 1]).is_err(), "too long");
    assert!(TABLE.decode_value(&[9], Raw::Borrowed(&[1])).is_err());
    assert!(TABLE.decode_value(&[9], Raw::Borrowed(&[0; 9])).is_err());
}

type Wide = (String, u64, Desc<u64>, String, Bytes);

proptest! {
    #[test]
    fn encoding_keeps_the_order_and_decodes(
        a in any::<(String, u64, u64, String, Vec<u8>)>(),
        b in any::<(String, u64, u64, String, Vec<u8>)>(),
        same in 0usize..4,
    ) {
        // Make leading parts equal now and then, so that the later ones decide.
        let mut b = b;
        if same > 0 { b.0.clone_from(&a.0); }
        if same > 1 { b.1 = a.1; }
        if same > 2 { b.2 = a.2; }
        let encode = |k: &(String, u64, u64, String, Vec<u8>)| {
            let mut buf = KeyBuf::default();
            Wide::encode((&k.0, k.1, Desc(k.2), &k.3, &k.4), &mut buf);
            buf.bytes
        };
        let (left, right) = (encode(&a), encode(&b));
        let order = |k: &(String, u64, u64, String, Vec<u8>)| (k.0.clone(), k.1, !k.2, k.3.clone(), k.4.clone());
        prop_assert_eq!(left.cmp(&right), order(&a).cmp(&order(&b)));
        let decoded = Wide::decode(&mut KeyReader(&left)).unwrap();
        prop_assert_eq!((decoded.0, decoded.1, decoded.2.0, decoded.3, decoded.4.to_vec()), a);
    }

    #[test]
    fn strings_with_control_characters_keep_their_order(a in "[\u{0}-\u{3}a]{0,6}", b in "[\u{0}-\u{3}a]{0,6}", tail in any::<(u8, u8)>()) {
        let encode = |text: &str, tail: u8| {
            let mut buf = KeyBuf::default();
            <(String, u8)>::encode((text, tail), &mut buf);
            buf.bytes
        };
        prop_assert_eq!(encode(&a, tail.0).cmp(&encode(&b, tail.1)), (&a, tail.0).cmp(&(&b, tail.1)));
    }
}

#[test]
fn limits_are_part_of_the_contract() {
    assert_eq!((limits::KEY_BYTES, limits::VALUE_BYTES, limits::BATCH_BYTES), (1 << 10, 96 << 10, 1 << 20));
}
