"""What a site may send without moving an image: a signed file of counts, and the pooling of several sites' files."""
