//! ImageService.

use tonic::{Request, Response, Status};

use super::Cri;
use super::runtime::image_text;
use super::streams::ListStream;
use crate::image::{Image as KnownImage, Pull};
use crate::proto::cri::image_service_server::ImageService;
use crate::proto::cri::*;

type Answer<T> = Result<Response<T>, Status>;

/// Annotation of a pod that names the handler whose snapshotter a pull is for (IMG-36).
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

impl Cri {
    /// All images, or those of a filter that is not empty (IMG-13).
    fn images(&self, filter: Option<&ImageFilter>) -> Vec<Image> {
        let images = &self.pods.containers.images;
        let asked = filter.and_then(|filter| filter.image.as_ref()).map(|image| image.image.as_str());
        match asked {
            Some(text) if !text.is_empty() => images.find(text).iter().map(|image| image.to_cri()).collect(),
            _ => images.list().iter().map(|image| KnownImage::to_cri(image)).collect(),
        }
    }

    /// The snapshotter that a pull unpacks for (IMG-36).
    fn snapshotter_of(&self, image: &ImageSpec, pod: Option<&PodSandboxConfig>) -> String {
        let annotation = pod.and_then(|pod| pod.annotations.get(HANDLER_ANNOTATION));
        let name = Some(&image.runtime_handler).filter(|name| !name.is_empty()).or(annotation);
        let handler = name.and_then(|name| self.config.handler(name));
        handler.unwrap_or_else(|| self.config.default_handler()).snapshotter.clone()
    }
}

#[tonic::async_trait]
impl ImageService for Cri {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let filter = request.into_inner().filter;
        self.serve("ListImages", "", async {
            Ok(ListImagesResponse { images: self.images(filter.as_ref()) })
        })
        .await
    }

    type StreamImagesStream = ListStream<StreamImagesResponse>;

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let filter = request.into_inner().filter;
        self.serve("StreamImages", "", async {
            self.lists.in_messages(self.images(filter.as_ref()), |images| StreamImagesResponse { images })
        })
        .await
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let ImageStatusRequest { image, verbose } = request.into_inner();
        let text = image.map(|image| image.image).unwrap_or_default();
        self.serve("ImageStatus", &text, async {
            let text = image_text(Some(&ImageSpec { image: text.clone(), ..Default::default() }))?;
            let found = self.pods.containers.images.find(&text);
            let info = match &found {
                Some(image) if verbose => {
                    [("info".to_owned(), self.pods.containers.images.verbose_info(image).await?)].into()
                }
                _ => Default::default(),
            };
            Ok(ImageStatusResponse { image: found.map(|image| image.to_cri()), info })
        })
        .await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let PullImageRequest { image, auth, sandbox_config } = request.into_inner();
        let text = image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        self.serve("PullImage", &text, async {
            image_text(image.as_ref())?;
            let image = image.unwrap_or_default();
            let snapshotter = self.snapshotter_of(&image, sandbox_config.as_ref());
            let pulled = self
                .pods
                .containers
                .images
                .pull(&self.pods.containers.flow, Pull { image, auth, snapshotter })
                .await?;
            Ok(PullImageResponse { image_ref: pulled })
        })
        .await
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let image = request.into_inner().image;
        let text = image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        self.serve("RemoveImage", &text, async {
            let text = image_text(image.as_ref())?;
            let images = self.pods.containers.images.clone();
            let removed = self.pods.containers.flow.detach(async move { images.remove(&text).await });
            removed.await.map(|()| RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        self.serve("ImageFsInfo", "", async {
            let filesystems = self.pods.containers.images.fs_info().await?;
            Ok(ImageFsInfoResponse {
                image_filesystems: filesystems.into_iter().map(Into::into).collect(),
                container_filesystems: Vec::new(),
            })
        })
        .await
    }
}
