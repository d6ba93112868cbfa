//! What subscribers are told of pods and containers (area EVT).
//!
//! Told is what can be seen: a container that is listed, a state after it is shown, a removal
//! after the object has left its list and its name is free (EVT-04). Calls here are cheap and
//! may be too many: [`crate::events`] sends nothing twice.

use super::Containers;
use crate::events::{Picture, Step};
use crate::ids::PodId;
use crate::state::{Container, Pod};

impl Containers {
    /// Tells what is new about a container.
    pub fn tell(&self, container: &Container) {
        self.tell_container(container, &container.steps());
    }

    /// Tells that a container is gone; it is in no table any more.
    pub fn tell_removed(&self, container: &Container) {
        let mut steps = container.steps();
        steps.push(Step::Deleted);
        self.tell_container(container, &steps);
    }

    /// Tells what is new about a pod. Its id stands where a container's would (EVT-02).
    pub fn tell_pod(&self, pod: &Pod) {
        self.events.tell(pod.id.as_str(), &pod.told, &pod.steps(), || self.picture(&pod.id, Some(pod)));
    }

    /// Tells that a pod is gone. Its last status is still told, so that the kubelet can tell
    /// whose end it is (EVT-03).
    pub fn tell_pod_removed(&self, pod: &Pod) {
        let mut steps = pod.steps();
        steps.push(Step::Deleted);
        self.events.tell(pod.id.as_str(), &pod.told, &steps, || self.picture(&pod.id, Some(pod)));
    }

    fn tell_container(&self, container: &Container, steps: &[Step]) {
        self.events.tell(container.id.as_str(), &container.told, steps, || {
            let pod = self.store.pod(container.pod_id.as_str()).ok();
            self.picture(&container.pod_id, pod.as_deref())
        });
    }

    /// The pod with all of its containers, as PodSandboxStatus and ContainerStatus show them.
    fn picture(&self, id: &PodId, pod: Option<&Pod>) -> Picture {
        let containers = self.store.containers();
        let inside = containers.iter().filter(|container| container.pod_id == *id);
        Picture {
            pod: pod.map(Pod::cri_status),
            containers: inside.map(|container| self.status_of(container)).collect(),
        }
    }
}
