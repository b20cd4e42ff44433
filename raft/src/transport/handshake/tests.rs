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
