use proptest::prelude::*;

use super::*;
use crate::{Gfn, GfnRun};

fn message() -> impl Strategy<Value = Message> {
    let remap =
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(start, count, frame)| Remap {
            run: GfnRun::new(Gfn(start), count),
            frame,
        });
    let op = prop_oneof![
        Just(Op::Freeze),
        Just(Op::MapShared),
        Just(Op::MapPrivate),
        Just(Op::Close),
        Just(Op::Reveal),
        Just(Op::Open),
        Just(Op::Enlarge)
    ];
    prop_oneof![
        (
            "[a-z]{1,63}",
            any::<[u32; 5]>(),
            any::<[bool; 3]>(),
            proptest::option::of(".{0,40}")
        )
            .prop_map(|(name, numbers, [uffd, sharing, inline], salt)| {
                let [pages, reservation, limit, shares, balloon_max] = numbers;
                Message::Hello(Hello {
                    name,
                    pages,
                    uffd,
                    reservation,
                    limit,
                    shares,
                    balloon_max,
                    sharing,
                    salt,
                    workload: "kv".to_owned(),
                    inline,
                    resource_pool: "prod".to_owned(),
                })
            }),
        (any::<u32>(), any::<u64>(), any::<[u32; 2]>()).prop_map(|(vm, token, [frames, arena])| {
            Message::Welcome(Welcome {
                vm,
                engine: Engine::Mprotect,
                token,
                pool_frames: frames,
                arena_pages: (arena > 0).then_some(arena),
            })
        }),
        (any::<u64>(), any::<u16>())
            .prop_map(|(base, channels)| Message::Ready(Ready { base, channels })),
        Just(Message::Go),
        (any::<u32>(), op, proptest::collection::vec(remap, 0..40))
            .prop_map(|(seq, op, runs)| Message::Command(Command { seq, op, runs })),
        any::<[u32; 3]>().prop_map(|[seq, done, errno]| Message::Ack(Ack { seq, done, errno })),
        ".{0,100}".prop_map(Message::Error),
        any::<u32>().prop_map(|seq| Message::Pool { seq }),
    ]
}

proptest! {
    #[test]
    fn message_decodes_to_what_was_encoded(message in message()) {
        prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn message_cut_or_prolonged_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let mut bytes = message.encode();
        prop_assert!(Message::decode(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert!(Message::decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Message::decode(&bytes), Fault::decode(&bytes), Reply::decode(&bytes));
    }

    #[test]
    fn channel_messages_decode_to_what_was_encoded(gfn in any::<u32>(), count in any::<u32>()) {
        let run = GfnRun::new(Gfn(gfn), count);
        for fault in [
            Fault::Read(Gfn(gfn)),
            Fault::Write(Gfn(gfn)),
            Fault::Done(gfn),
            Fault::History(Gfn(gfn)),
            Fault::Credits,
            Fault::Attach { pages: run, source: Gfn(!gfn) },
        ] {
            prop_assert_eq!(Fault::decode(&fault.encode(gfn ^ 5)), Ok((fault, gfn ^ 5)));
        }
        for reply in [
            Reply::Retry,
            Reply::Open(run),
            Reply::Private(run),
            Reply::Reveal(run),
            Reply::Attached(count),
        ] {
            prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
    }
}

#[test]
fn another_version_is_named() {
    let mut bytes = Message::Go.encode();
    bytes[0] = 9;
    let error = Message::decode(&bytes).expect_err("version 9");
    assert_eq!(
        error.to_string(),
        format!("peer speaks version 9 of the memory protocol, this side speaks {VERSION}")
    );
}

#[test]
fn longest_command_fits_a_message() {
    let remap = Remap {
        run: GfnRun::single(Gfn(1)),
        frame: 0,
    };
    let command = Command {
        seq: 1,
        op: Op::Freeze,
        runs: vec![remap; MAX_RUNS],
    };
    assert!(Message::Command(command).encode().len() <= MAX_MESSAGE);
}
