//! Which calls are wanted.

use super::recorder::is_look;
use super::story::Story;

/// What is asked for; what is empty is not asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The id of a call, or of its error.
    pub id: String,
    /// `name`, `namespace/name`, or the beginning of an id.
    pub pod: String,
    /// The name, or the beginning of an id.
    pub container: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The method, in any case; for what the server did by itself in brackets.
    pub method: String,
    /// Only calls that failed, or in which something did.
    pub errors: bool,
    /// Only calls that took longer.
    pub slower_than_us: u64,
    /// Also calls that only look, such as lists, when they went well.
    pub all: bool,
}

impl Filter {
    /// Whether a call is wanted.
    #[must_use]
    pub fn wants(&self, story: &Story) -> bool {
        let about = &story.about;
        let (namespace, name) = about.pod.split_once('/').unwrap_or(("", &about.pod));
        let is = |wanted: &str, name: &str, id: &str| {
            // A handful of digits may begin an id by chance, one or two will.
            wanted.is_empty() || wanted == name || (wanted.len() >= 4 && id.starts_with(wanted))
        };
        if !self.id.is_empty() {
            return self.id == story.id || self.id == story.failure;
        }
        let is_named = !self.method.is_empty() || !self.pod.is_empty() || !self.container.is_empty();
        let is_told = self.all || is_named || self.errors || self.slower_than_us > 0;
        (is(&self.pod, name, &about.pod_id) || self.pod == about.pod)
            && is(&self.container, &about.container, &about.container_id)
            && (self.namespace.is_empty() || self.namespace == namespace)
            && (self.method.is_empty() || self.method.eq_ignore_ascii_case(&story.method))
            && (!self.errors || story.is_failed() || story.steps.iter().any(|step| !step.error.is_empty()))
            && story.end_us() > self.slower_than_us
            && (is_told || story.is_failed() || !is_look(&story.method))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{About, Step};

    fn story() -> Story {
        Story {
            id: "00000a".into(),
            method: "StartContainer".into(),
            us: Some(5000),
            code: "OK".into(),
            about: About {
                pod: "prod/web-0".into(),
                pod_id: "aaaabbbb".into(),
                container: "app".into(),
                container_id: "ccccdddd".into(),
                ..About::default()
            },
            ..Story::default()
        }
    }

    #[test]
    fn each_filter_takes_what_it_names() {
        let wants = |set: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            set(&mut filter);
            filter.wants(&story())
        };
        assert!(wants(&|_| {}));
        for pod in ["web-0", "prod/web-0", "aaaa", "aaaabbbb"] {
            assert!(wants(&|it| it.pod = pod.into()), "{pod}");
        }
        for pod in ["web", "test/web-0", "aaa", "cccc"] {
            assert!(!wants(&|it| it.pod = pod.into()), "{pod}");
        }
        assert!(wants(&|it| it.container = "app".into()) && wants(&|it| it.container = "cccc".into()));
        assert!(!wants(&|it| it.container = "other".into()));
        assert!(wants(&|it| it.namespace = "prod".into()) && !wants(&|it| it.namespace = "pro".into()));
        assert!(wants(&|it| it.method = "startcontainer".into()) && !wants(&|it| it.method = "Start".into()));
        assert!(wants(&|it| it.slower_than_us = 4000) && !wants(&|it| it.slower_than_us = 5000));
        assert!(!wants(&|it| it.errors = true));
        assert!(wants(&|it| it.id = "00000a".into()) && !wants(&|it| it.id = "00000b".into()));
    }

    #[test]
    fn errors_are_those_of_calls_and_of_steps() {
        let errors = Filter { errors: true, ..Filter::default() };
        assert!(errors.wants(&Story { code: "Unknown".into(), ..story() }));
        let steps = vec![Step { error: "no".into(), ..Step::default() }];
        assert!(errors.wants(&Story { steps, ..story() }));
        let failed = Story { failure: "0000ff".into(), code: "Unknown".into(), ..story() };
        assert!(Filter { id: "0000ff".into(), ..Filter::default() }.wants(&failed));
    }

    #[test]
    fn what_only_looks_is_told_when_it_fails_or_is_asked_for() {
        let list = Story { method: "ListContainers".into(), ..story() };
        assert!(!Filter::default().wants(&list));
        assert!(Filter { all: true, ..Filter::default() }.wants(&list));
        assert!(Filter { method: "ListContainers".into(), ..Filter::default() }.wants(&list));
        assert!(Filter { slower_than_us: 1, ..Filter::default() }.wants(&list));
        assert!(Filter::default().wants(&Story { code: "Unknown".into(), ..list }));
    }
}
