//! Every upper bound in one place, with the relations between them checked by the compiler.
//!
//! What is configurable has its default here; what is not is part of a format or a protocol.

/// Largest ensemble.
pub const ENSEMBLE_MAX: u32 = 16;

/// Most shares that a tenant may have of a server with too much to do; others have one.
pub const TENANT_WEIGHT_MAX: u32 = 100;

/// Largest message: key, properties and value together, before compression, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 5 * 1024 * 1024;
/// Largest batch as sent (header, table and compressed payload), in bytes.
pub const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 256 * 1024;
/// Largest payload block of a batch after decompression, in bytes: the bound against bombs.
pub const BATCH_UNCOMPRESSED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most messages in one batch.
pub const BATCH_MESSAGES_MAX: u32 = 65_536;
/// Largest header of a batch (its fields, without table), in bytes.
pub const BATCH_HEADER_BYTES_MAX: usize = 64 * 1024;
/// Largest entry that a bookie stores: a batch and the broker's header.
pub const ENTRY_BYTES_MAX: usize = BATCH_BYTES_MAX + 4096;
/// Largest gRPC message on any stream, in bytes: an entry, and the ranges of a batch that are not
/// for its consumer, at worst every second message.
pub const FRAME_BYTES_MAX: usize = ENTRY_BYTES_MAX + 1024 * 1024;
/// Largest unary request, in bytes: names, policies, ranges of entries. Well above the longest
/// names, so that one that is too long is refused as what it is.
pub const UNARY_REQUEST_BYTES_MAX: usize = 128 * 1024;
/// Memory of the elements of repeated fields in one request, in bytes: what decoding takes besides
/// the bytes of the message.
pub const REQUEST_ELEMENT_BYTES_MAX: usize = 256 * 1024;
/// The same in one answer, which may list much.
pub const RESPONSE_ELEMENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest tenant or namespace name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest local topic name, in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 512;
/// Longest subscription, producer or consumer name, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 512;
/// Most partitions of a topic.
pub const PARTITIONS_MAX: u32 = 4096;
/// Largest key of a message, in bytes.
pub const KEY_BYTES_MAX: usize = 64 * 1024;
/// Most properties of one message.
pub const PROPERTIES_MAX: usize = 256;

/// Operations in one metadata transaction (etcd's default).
pub const METADATA_OPERATIONS_MAX: usize = 128;
/// Bytes of one metadata request (etcd's default).
pub const METADATA_REQUEST_BYTES_MAX: usize = 1_572_864;
/// Largest page of a metadata scan, in keys.
pub const METADATA_PAGE_KEYS_MAX: usize = 1_000;

/// Producers that one topic serves at once.
pub const PRODUCERS_PER_TOPIC_MAX: usize = 10_000;
/// Subscriptions of one topic.
pub const SUBSCRIPTIONS_PER_TOPIC_MAX: usize = 10_000;
/// Bytes of the names and values of all properties of one subscription.
pub const SUBSCRIPTION_PROPERTIES_BYTES_MAX: usize = 1024;
/// Consumers of one subscription.
pub const CONSUMERS_PER_SUBSCRIPTION_MAX: usize = 10_000;
/// Producer names that deduplication remembers per topic, without those that the broker drew; the
/// longest idle is forgotten first.
pub const DEDUP_PRODUCERS_MAX: usize = 10_000;
/// Drawn names without a producer that deduplication remembers per topic, for the grace in which
/// one may come back.
pub const DEDUP_DRAWN_IDLE_MAX: usize = 10_000;
/// Messages of one consumer that may be delivered and unacknowledged at once.
pub const UNACKED_PER_CONSUMER_MAX: u64 = 50_000;
/// Messages of one Shared subscription that may be delivered and unacknowledged at once.
pub const UNACKED_PER_SUBSCRIPTION_MAX: u64 = 200_000;
/// Ranges of single messages in one acknowledgement.
pub const ACK_RANGES_MAX: usize = 1_024;
/// Ranges of messages in one delivery; what of an entry lies behind more comes in another one.
pub const DELIVERY_RANGES_MAX: usize = 16_384;
/// Ranges of redelivery counts in a record of a subscription: a topic may have 10,000 of them.
pub const REDELIVERED_RANGES_MAX: usize = 256;
/// Latest batches of a producer whose positions are remembered to answer duplicates.
pub const DEDUP_WINDOW_MAX: usize = 64;
/// Part of a cursor snapshot in the cursor log, in bytes.
pub const SNAPSHOT_PART_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(SNAPSHOT_PART_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX < ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX < FRAME_BYTES_MAX);
// A range takes at most 24 bytes on the wire.
const _: () = assert!(BATCH_MESSAGES_MAX / 2 * 24 < 1024 * 1024);
// Every piece of a subscription that spans parts of a snapshot repeats its redelivery counts.
const _: () = assert!(REDELIVERED_RANGES_MAX * 30 < SNAPSHOT_PART_BYTES_MAX / 4);
// With its redelivery count 30. What lies between the ranges of a delivery is told, too.
const _: () = assert!((DELIVERY_RANGES_MAX + 1) * (24 + 30) < 1024 * 1024);
const _: () = assert!(MESSAGE_BYTES_MAX <= BATCH_UNCOMPRESSED_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(UNACKED_PER_CONSUMER_MAX <= UNACKED_PER_SUBSCRIPTION_MAX);
