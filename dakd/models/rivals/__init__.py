"""The students and the teacher that SAROSS-Net and SAR-JointNet are compared with."""
