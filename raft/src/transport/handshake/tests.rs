use super::*;

fn identity(node: u32, cluster: Option<u8>) -> Identity {
    Identity {
        node: NodeId(node),
        cluster: cluster.map(|byte| ClusterId([byte; 16])),
        boot: 77,
        limits: Limits::default(),
    }
}

fn greeting() -> Greeting {
    Greeting::new(identity(1, Some(5)), NodeId(2), 3, false)
}

#[test]
fn greetings_survive_the_round_trip() {
    let sent = greeting();
    assert_eq!(Greeting::decode(&sent.encode(HELLO), HELLO).unwrap(), sent);
    let introduction = Greeting::new(identity(1, None), NodeId(0), 0, true);
    assert_eq!(
        Greeting::decode(&introduction.encode(WELCOME), WELCOME).unwrap(),
        introduction
    );
}

#[test]
fn every_flip_in_a_greeting_is_found() {
    let bytes = greeting().encode(HELLO);
    for bit in 0..GREETING_LEN * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Greeting::decode(&damaged, HELLO).is_err(), "bit {bit}");
    }
}

#[test]
fn greetings_are_judged_by_version_cluster_and_node() {
    let us = identity(2, Some(5));
    let judge = |change: &dyn Fn(&mut Greeting)| {
        let mut greeting = greeting();
        change(&mut greeting);
        greeting.judge(&us).err().map(|error| error.code())
    };
    assert_eq!(judge(&|_| {}), None);
    assert_eq!(judge(&|g| g.newest = 9), None, "ranges overlap");
    assert_eq!(judge(&|g| (g.oldest, g.newest) = (2, 9)), Some(1));
    assert_eq!(judge(&|g| g.newest = 0), Some(1));
    assert_eq!(
        judge(&|g| g.from.cluster = Some(ClusterId([6; 16]))),
        Some(2)
    );
    assert_eq!(judge(&|g| g.to = NodeId(9)), Some(3));
    assert_eq!(judge(&|g| g.from.node = NodeId(2)), Some(4));
    assert_eq!(judge(&|g| g.from.cluster = None), Some(6));
    assert_eq!(judge(&|g| g.from.limits.link_window = 1), Some(7));
    let introduced = |g: &mut Greeting| {
        g.from.cluster = None;
        g.introduction = true;
        g.to = NodeId(0);
    };
    assert_eq!(judge(&introduced), None);
    let foreign = |g: &mut Greeting| {
        g.introduction = true;
        g.from.cluster = Some(ClusterId([6; 16]));
    };
    assert_eq!(judge(&foreign), Some(2));
}

/// Greetings as the first release says them, kept for ever: each later one must understand them.
mod format_1 {
    use super::*;

    const HELLO_BYTES: &[u8; GREETING_LEN] =
        include_bytes!("../../../tests/fixtures/peer/v1/hello.bin");
    const INTRODUCTION: &[u8; GREETING_LEN] =
        include_bytes!("../../../tests/fixtures/peer/v1/introduction.bin");
    const WELCOME_BYTES: &[u8; GREETING_LEN] =
        include_bytes!("../../../tests/fixtures/peer/v1/welcome.bin");
    const REFUSED: &[u8; GREETING_LEN] =
        include_bytes!("../../../tests/fixtures/peer/v1/refused.bin");

    fn answer(cluster: u8, verdict: u8) -> Greeting {
        let from = Identity {
            boot: 78,
            ..identity(2, Some(cluster))
        };
        Greeting::new(from, NodeId(1), verdict, false)
    }

    #[test]
    fn greetings_are_understood() {
        let introduction = Greeting::new(identity(1, None), NodeId(0), 0, true);
        for (bytes, magic, said) in [
            (HELLO_BYTES, HELLO, greeting()),
            (INTRODUCTION, HELLO, introduction),
            (WELCOME_BYTES, WELCOME, answer(5, 0)),
            (REFUSED, WELCOME, answer(6, 2)),
        ] {
            let understood = Greeting::decode(bytes, magic).unwrap();
            assert_eq!((understood.oldest, understood.newest), (1, 1));
            assert_eq!(understood.from, said.from);
            assert_eq!(
                (understood.to, understood.lane, understood.introduction),
                (said.to, said.lane, said.introduction)
            );
        }
        let us = identity(2, Some(5));
        let hello = Greeting::decode(HELLO_BYTES, HELLO).unwrap();
        assert!(hello.judge(&us).is_ok(), "format 1 is still spoken");
    }

    #[test]
    fn greetings_are_still_said_so() {
        assert_eq!(&greeting().encode(HELLO), HELLO_BYTES);
        assert_eq!(&answer(5, 0).encode(WELCOME), WELCOME_BYTES);
    }

    #[test]
    fn a_peer_that_speaks_only_later_formats_is_refused_with_both_ranges() {
        let mut later = greeting();
        (later.oldest, later.newest) = (VERSION + 1, VERSION + 2);
        let bytes = later.encode(HELLO);
        let refused = Greeting::decode(&bytes, HELLO)
            .unwrap()
            .judge(&identity(2, Some(5)));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "the peer speaks protocol versions 2 to 3, this node 1 to 1"
        );
    }
}
