# The images of this repository: docker buildx bake [--push]. Set a variable by an environment variable of its name.

variable "REGISTRY" {
  # Where the tags point; nothing is pushed without --push.
  default = "ghcr.io/troupe-studio"
}

variable "TROUPE_VERSION" {
  default = "0.1.0"
}

variable "TROUPE_REVISION" {
  # git rev-parse HEAD
  default = "unknown"
}

variable "CUDA_IMAGE" {
  default = "docker.io/nvidia/cuda:12.9.1-base-ubuntu24.04"
}

variable "CUDA_DIGEST" {
  default = "sha256:5d2e53778e2180e01676aa8bac1aada242e95230ec97e21ecfb33de4e27cd1df"
}

variable "TORCH_INDEX" {
  default = "https://download.pytorch.org/whl/cu129"
}

variable "TORCH_VERSION" {
  default = "2.13.0"
}

variable "TORCHVISION_VERSION" {
  default = "0.28.0"
}

variable "TORCHAUDIO_VERSION" {
  default = "2.11.0"
}

variable "COMFY_CLI_VERSION" {
  default = "1.23.0"
}

variable "COMFYUI_VERSION" {
  default = "0.8.0"
}

variable "SD_SCRIPTS_REPOSITORY" {
  default = "https://github.com/kohya-ss/sd-scripts.git"
}

variable "SD_SCRIPTS_COMMIT" {
  default = "48d368fa557731ad0488c07304dfeba8c07910eb"
}

group "default" {
  targets = ["comfyui"]
}

target "comfyui" {
  context    = "."
  dockerfile = "pod_images/comfyui/Dockerfile"
  # The base's digest is the one of this platform; ComfyUI's CUDA wheels and the GPU clouds have no other.
  platforms = ["linux/amd64"]
  tags = [
    "${REGISTRY}/troupe-comfyui:${TROUPE_VERSION}",
    "${REGISTRY}/troupe-comfyui:${TROUPE_VERSION}-comfyui${COMFYUI_VERSION}",
  ]
  args = {
    CUDA_IMAGE            = CUDA_IMAGE
    CUDA_DIGEST           = CUDA_DIGEST
    TORCH_INDEX           = TORCH_INDEX
    TORCH_VERSION         = TORCH_VERSION
    TORCHVISION_VERSION   = TORCHVISION_VERSION
    TORCHAUDIO_VERSION    = TORCHAUDIO_VERSION
    COMFY_CLI_VERSION     = COMFY_CLI_VERSION
    COMFYUI_VERSION       = COMFYUI_VERSION
    SD_SCRIPTS_REPOSITORY = SD_SCRIPTS_REPOSITORY
    SD_SCRIPTS_COMMIT     = SD_SCRIPTS_COMMIT
    TROUPE_VERSION        = TROUPE_VERSION
    TROUPE_REVISION       = TROUPE_REVISION
  }
}
