output "buckets" {
  description = "Names for the fleet file (partitions: archive, audit: reports) and for pgbackrest.conf (repo1-s3-bucket)."
  value       = { for name, bucket in aws_s3_bucket.this : name => bucket.bucket }
}

output "key" {
  description = "For the fleet file (s3: kms_key_id) and pgbackrest.conf (repo1-s3-kms-key-id)."
  value       = aws_kms_key.this.arn
}

output "policies" {
  description = "Policies to attach to roles or users of your own."
  value       = { for name, policy in aws_iam_policy.this : name => policy.arn }
}

output "roles" {
  description = "The roles that were made, by name."
  value       = { for name, role in aws_iam_role.this : name => role.arn }
}
