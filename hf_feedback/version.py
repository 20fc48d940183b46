"""The version of hf_feedback, which is also written into every config that it saves."""

HF_FEEDBACK_VERSION = "0.1.0"
