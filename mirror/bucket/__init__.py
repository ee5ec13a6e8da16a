"""What is kept in a bucket, beside what is cached on the disk: for when disks are lost. How it is read: mirror/upstream/bucket.py."""
