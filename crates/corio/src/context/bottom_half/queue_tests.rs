//! What is asked from elsewhere while the home has popped, which no schedule of threads makes sure.

use super::*;

#[derive(Debug)]
struct Node(Link<Node>);

impl Chained for Node {
    fn next(&self) -> &AtomicPtr<Self> {
        self.0.next_asked()
    }
}

impl Linked for Node {
    fn link(&self) -> &Link<Self> {
        &self.0
    }

    fn runs_once(&self) -> bool {
        false
    }
}

fn nodes<const N: usize>() -> [Node; N] {
    core::array::from_fn(|_| Node(Link::new()))
}

/// A turn: the indices of what ran.
fn turn(queue: &Queue<Node>, nodes: &[Node]) -> Vec<usize> {
    let section = queue.section().unwrap();
    let mut slice = section.slice();
    let mut ran = Vec::new();
    while let Some(popped) = section.pop(&mut slice) {
        match popped {
            Popped::Run { node, .. } => {
                let index = nodes
                    .iter()
                    .position(|other| ptr::eq(other, node.as_ptr()))
                    .unwrap();
                ran.push(index);
                assert!(!section.ran(&nodes[index]));
            }
            Popped::Skip => {}
            other => panic!("{other:?}"),
        }
    }
    ran
}

/// Pops the only node, has `elsewhere` happen, and puts it back.
fn put_back(queue: &Queue<Node>, node: &Node, elsewhere: impl FnOnce()) {
    let section = queue.section().unwrap();
    let Some(Popped::Run { hurry, .. }) = section.pop(&mut section.slice()) else {
        panic!("it is queued");
    };
    elsewhere();
    section.put_back(node, hurry);
}

// SPEC B5, A1: a home that ends goes through its queue; who cancels meanwhile is not overlooked.
#[test]
fn what_is_cancelled_while_it_is_put_back_does_not_run() {
    let (queue, nodes) = (Queue::new(), nodes::<1>());
    let _ = queue.ask(&nodes[0], Hurry::Urgent);
    queue.section().unwrap().absorb();
    put_back(&queue, &nodes[0], || Queue::ask_to_cancel(&nodes[0]));
    assert!(turn(&queue, &nodes).is_empty());
    let _ = queue.ask(&nodes[0], Hurry::Urgent);
    assert_eq!(turn(&queue, &nodes), [0], "a later schedule is another one");
}

// SPEC B7, A1
#[test]
fn what_is_put_back_comes_before_what_was_scheduled_later() {
    let (queue, nodes) = (Queue::new(), nodes::<2>());
    let _ = queue.ask(&nodes[0], Hurry::Idle);
    queue.section().unwrap().absorb();
    put_back(&queue, &nodes[0], || {
        _ = queue.ask(&nodes[1], Hurry::Urgent)
    });
    assert_eq!(turn(&queue, &nodes), [0, 1]);
    assert!(turn(&queue, &nodes).is_empty());
}
