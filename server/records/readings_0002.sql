-- What is in readings now.
DROP TABLE observations;
