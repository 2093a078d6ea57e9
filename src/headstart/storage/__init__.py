"""What lies on disks: durable writes, record files, caches, tensors."""
